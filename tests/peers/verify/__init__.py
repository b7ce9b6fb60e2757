"""Scripts that verify the findings on third-party compressors: plain torch and transformers, none of our harness."""
