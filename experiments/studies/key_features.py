"""What products of features in the keys of a delta memory are worth.

    python -m launch.study --study=experiments/studies/key_features.py --workdir=runs/studies

Results: results/key_features.md.
"""

from linseqrec.studies.study import COUNTING, Claim, Study, Table, arms

_LINEAR = "linear features, K = 128"
_PRODUCTS = "8 products of 64 features, K = 512"
_ARMS = {_LINEAR: {}, _PRODUCTS: {"model.key_width": 64, "model.feature_products": 8}}

STUDY = Study(
    name="key_features",
    title="What products of features in keys are worth",
    about=(
        "Gated DeltaNet with other keys and queries. Linear features of vectors of the model's "
        "width keep at most so many keys apart, however large K is. Products of features keep "
        "more apart (`feature_products`), by the feature map of DPFP (arXiv 2102.11174) without "
        "its ReLU."
    ),
    tables=(
        Table(
            "repetition",
            "Habits (synthetic data).",
            arms("experiments/repetition.py:gated_deltanet", _ARMS),
        ),
        Table(
            "foursquare",
            "Check-ins in New York, 76 % of them revisits.",
            arms("experiments/foursquare.py:gated_deltanet", _ARMS),
        ),
    ),
    claims=(
        *(
            Claim(
                f"Products of features in keys are better than linear features, in `{table}`",
                table,
                _PRODUCTS,
                (_LINEAR,),
            )
            for table in ("repetition", "foursquare")
        ),
        Claim(
            "A linear memory with keys of products recalls habits better than counting",
            "repetition",
            _PRODUCTS,
            COUNTING,
        ),
    ),
)
