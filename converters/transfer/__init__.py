"""LLM knowledge transfer: from unlabelled faces, a CLIP and an LLM with eyes to a projection that ``convert`` takes."""
