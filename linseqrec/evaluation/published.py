"""Published figures that ours are set beside."""

# RecGRELA on ML-1M by its authors' log (arXiv 2506.13315): leave-one-out, full ranking, seen items
# not filtered; validation NDCG@10 after the given epochs of 981,491 rows. Best epoch: 96.
RECGRELA_ML1M_CURVE = tuple(
    {"epoch": epoch, "validation/none/NDCG@10": value}
    for epoch, value in ((1.0, 0.1072), (11.0, 0.1829), (31.0, 0.1984), (97.0, 0.2069))
)
