"""The fault bench: every way a sweep can be hurt, as often as it takes to believe that it survives."""
