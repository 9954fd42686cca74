"""Docstrings become answers; what the model must not see stays out of the prompt."""

import textwrap

import pytest

from finetuning.docstring_pairs import docstring_pairs, pairs_in
from training.corpus import load_corpus
from training.document_split import text_hash


def pairs(source, **options):
    return list(pairs_in(textwrap.dedent(source), **options))


def test_the_docstring_is_cut_out_and_the_rest_stays_as_written():
    (pair,) = pairs('''
        class Box:
            @property
            def size(self):  # not cached
                r"""Return the number of items.

                Cheap.
                """
                # counted anew
                return  len( self.items )
    ''')
    assert pair.prompt.splitlines() == [
        "def size(self):  # not cached",
        "    # counted anew",
        "    return  len( self.items )",
        "# Summary:",
    ]
    assert pair.prompt.endswith(":\n")
    assert pair.answer == "Return the number of items."


def test_nested_async_and_guarded_functions_are_found_in_order():
    found = pairs('''
        try:
            async def first():
                """Answer number one."""
                def second():
                    """Answer number two."""
                    return 2
                return 1
        except ImportError:
            def third():
                """Answer number three."""
                return 3
    ''')
    assert [pair.answer.rsplit(" ", 1)[1] for pair in found] == ["one.", "two.", "three."]
    assert "Answer number two" in found[0].prompt  # its inner function is part of what it does


@pytest.mark.parametrize(
    "source",
    [
        "def f(x):\n    return x\n",
        'def f(x):\n    """Only a docstring."""\n',
        'def f(x): "Return x itself."; return x\n',
        'def f(x):\n    """Return x itself."""; return x\n',
        'def f(x):\n    """Too short"""\n    return x\n',
        'def f(x):\n    """' + "Long " * 20 + '."""\n    return x\n',
        'def f(x):\n    """Return x itself."""\n    # Return x itself.\n    return x\n',
        'def f(x):\n    """Return\\x07x itself."""\n    return x\n',
        "def f(x:\n",
        "def f(x):\n    '''Return x itself.'''\n" + "    x += 1\n" * 20 + "    return x\n",
    ],
)
def test_unfit_functions_give_no_pair(source):
    assert pairs(source) == []


def test_the_limit_of_lines_counts_what_is_left():
    source = '''
        def f(x):
            """Return x plus two.

            One at a time.
            """
            x += 1
            x += 1
            return x
    '''
    assert len(pairs(source, max_lines=4)) == 1
    assert pairs(source, max_lines=3) == []


@pytest.fixture(scope="module")
def library():
    return docstring_pairs()


def test_the_library_gives_thousands_split_by_module_as_the_corpus_is(library):
    training, held_out = library
    assert len(training) > 2000
    assert 0.03 < len(held_out) / len(training) < 0.3
    texts = [document.text for document in load_corpus("python-code")]
    for text in texts[:60]:
        inside = set(pairs_in(text))
        is_val = text_hash(text.encode()) < 0.1 * 2**64
        assert inside <= set(held_out) | set(training) if is_val else inside <= set(training)


def test_no_pair_twice_and_none_on_both_sides(library):
    training, held_out = library
    assert len(set(training) | set(held_out)) == len(training) + len(held_out)
    assert all(10 <= len(pair.answer) <= 80 and pair.answer not in pair.prompt for pair in held_out)


def test_fractions_and_limits_are_checked():
    with pytest.raises(ValueError, match="max_lines must be an integer >= 2, got 1"):
        docstring_pairs(max_lines=1)
    with pytest.raises(ValueError, match="held_out_fraction"):
        docstring_pairs(held_out_fraction=1.5)
