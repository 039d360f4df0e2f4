"""Images in, as callers pass them; numbers that a network reads out, [3, height, width] each."""
