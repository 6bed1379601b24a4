"""From a judged study to the target: what is carried over, what guards it, what it hands out."""
