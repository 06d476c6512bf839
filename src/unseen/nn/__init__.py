"""Images → feature maps → fused features → embedding; and the class adversary."""
