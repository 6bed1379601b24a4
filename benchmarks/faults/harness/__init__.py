"""What the rows share: commands to start, moments to hurt them, servers, and the promise that must hold."""
