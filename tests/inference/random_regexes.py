"""Random regular expressions over a small alphabet, for hypothesis."""

from hypothesis import strategies as st

ATOMS = [
    "a",
    "b",
    "春",
    "1",
    "[ab]",
    "[^a]",
    "[a春]",
    ".",
    r"\d",
    r"\w",
    r"[^\W\d]",
    "[a-c1]",
    r"\S",
]


def patterns(*, unbounded=True, atoms=tuple(ATOMS)):
    """Patterns that `re` reads as we do, of moderate size."""
    quantifiers = ["?", "{2}", "{0,2}", "{1,2}", "{,1}", *(["*", "+", "{1,}"] if unbounded else [])]

    def grow(inner):
        group = inner.map(lambda text: f"(?:{text})")
        return st.one_of(
            st.tuples(group, st.sampled_from(quantifiers)).map("".join),
            st.lists(group, min_size=2, max_size=3).map("".join),
            st.lists(inner, min_size=2, max_size=3).map("|".join).map(lambda text: f"({text})"),
        )

    return st.recursive(st.sampled_from(atoms), grow, max_leaves=5)
