"""One heavy library a file; nobody else imports it."""
