"""DeepGEMM: FP8 GEMMs with block scales, compiled when first called."""
