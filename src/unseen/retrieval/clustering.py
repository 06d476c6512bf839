"""Agreement of k-means clusters with labels. Needs scikit-learn."""

from __future__ import annotations

import torch
from torch import Tensor

from unseen.retrieval.engine.vectors import Similarity


def cluster_agreement(
    embeddings: Tensor, labels: Tensor, similarity: Similarity, seed: int = 0
) -> dict[str, float]:
    """Normalised and adjusted mutual information of labels and k-means with one cluster a class.

    Vinh et al., Information Theoretic Measures for Clusterings Comparison, 2010. AMI corrects for chance, NMI
    rises with the number of clusters.

    Args:
        embeddings: `(N, d)` float32; normalised first for cosine.
        labels: `(N,)` int64.
    """
    try:
        from sklearn.cluster import KMeans
        from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score
    except ImportError as error:
        raise ImportError(
            "nmi and ami need scikit-learn: pip install scikit-learn, or leave them out."
        ) from error
    points = torch.nn.functional.normalize(embeddings) if similarity == "cosine" else embeddings
    classes = len(labels.unique())
    found = KMeans(n_clusters=classes, n_init=1, random_state=seed).fit_predict(points.cpu().numpy())
    true = labels.cpu().numpy()
    return {
        "nmi": float(normalized_mutual_info_score(true, found)),
        "ami": float(adjusted_mutual_info_score(true, found)),
    }
