"""One file per decoding strategy, with its edge half and its cloud half."""
