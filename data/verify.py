"""What judges an answer."""


def exact_match(prediction: str, gold: str) -> bool:
    """The same text, up to white space around and between its words."""
    return prediction.split() == gold.split()
