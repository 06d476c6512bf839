"""Images → feature maps → fused features → embedding; the class adversary; regularisers."""
