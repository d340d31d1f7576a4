"""Where encoders and projections come from: students trained on faces, and LLM knowledge transfer."""
