"""Where small encoders come from: students trained on faces, alone or from teachers."""
