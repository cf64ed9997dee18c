"""For videos: what repeats from frame to frame goes. Images in the same prompt are left alone."""
