"""Markup escapes whatever it did not make itself."""

import pytest
from reading_html import Reader

from utils.pages.markup import Markup, element, escape, join, shorten

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onload='x", "a & b < c", "</td></table>",
           "<!--", "&lt;", "]]>", "javascript:alert(1)"]


@pytest.mark.parametrize("text", HOSTILE)
def test_text_and_attributes_come_back_as_they_were(text):
    page = Reader(element("p", text, title=text))
    assert page.elements == [("p", {"title": text})] and page.text == text + " "


def test_characters_that_hide_or_reorder_words_are_replaced():
    assert escape("a\x00b\x1bc\u202ed\ud800e\u200bf") == "a�b�c�d�e�f"
    assert escape("α ≤ 5 %,\nnaïve\tcafé 猫") == "α ≤ 5 %,\nnaïve\tcafé 猫"
    escape("\ud800").encode()


def test_what_an_element_made_is_not_escaped_again():
    inner = element("b", "1 < 2")
    assert element("p", inner, None, [" & ", inner]) == "<p><b>1 &lt; 2</b> &amp; <b>1 &lt; 2</b></p>"
    assert isinstance(join([inner]), Markup) and not isinstance(inner + "<i>", Markup)


def test_attributes_can_be_absent_or_without_value():
    assert element("p", class_="a", hidden=True, id=None, lang=False, data_x=0) == '<p class="a" hidden data-x="0"></p>'
    assert element("img", src="#", name="n") == '<img src="#" name="n">'


def test_long_text_is_cut_with_a_sign():
    assert shorten("abcdef", 6) == "abcdef" and shorten("abcdefg", 6) == "abcde…"
