"""Host side: a trained encoder and its projection become a bundle. Needs the extra ``convert``."""
