"""The pretraining losses: pure, fp32 inside, masks instead of dynamic shapes."""
