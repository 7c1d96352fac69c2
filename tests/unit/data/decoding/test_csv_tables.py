"""Tables with faults that would change numbers in silence."""

import pytest

from mlecs_lightning.data.decoding.csv_tables import read_csv
from mlecs_lightning.data.decoding.shapes import Declared, DecodeError

TWO = Declared("series", [2, 3])
ONE = Declared("series", [1, 3])
VECTOR = Declared("vector", [4])


@pytest.mark.parametrize(
    ("text", "declared", "message"),
    [
        # A first row that was meant to be numbers.
        (
            "1.0O,2.0\n3,4\n",
            TWO,
            "line 1, column 1: '1.0O' is not a number, and its row not a header",
        ),
        ("1.0O\n3\n", ONE, "line 1, column 1: '1.0O' is not a number, and its row not a header"),
        (
            "x,2\n3,4\n",
            TWO,
            "line 1, column 1: 'x' is not a number, and its row not a header, whose names",
        ),
        ("1..5,b\n3,4\n", TWO, "line 1, column 1: '1..5'"),
        ("\n\n-.5e,+3\n3,4\n", TWO, "line 3, column 1: '-.5e'"),
        ("1_0,2\n3,4\n", TWO, "line 1, column 1: '1_0' is not a number"),
        ("nan,2\n3,4\n", TWO, "line 1, column 1: 'nan' is not a finite number"),
        # A second one.
        ("x,y\n1,2O\n", TWO, "line 2, column 2: '2O' is not a number; correct it"),
        ("x,y\nu,v\n1,2\n", TWO, "line 2, column 1: 'u' is not a number; correct it"),
        # Decimal commas.
        (
            "1,5;2,5\n3,5;4,5\n",
            TWO,
            "line 1, column 1: '1,5' has a decimal comma; write points: 1.5",
        ),
        ("x;y\n1;2,5\n", TWO, "line 2, column 2: '2,5' has a decimal comma; write points: 2.5"),
        ("1,5\t2,5\n", TWO, "'1,5' has a decimal comma"),
        ('"1,5","2,5"\n', TWO, "'1,5' has a decimal comma"),
        ("-1,5e3;2\n", TWO, "'-1,5e3' has a decimal comma; write points: -1.5e3"),
        (
            "1,5\n2,5\n",
            ONE,
            "line 1: has 2 columns, .* 1 channels; if the comma is a decimal comma",
        ),
        ("1,5;2,5;3,5;4,5\n", VECTOR, "'1,5' has a decimal comma"),
        # Other columns than channels, and lines that were cut.
        (
            "1,2,3\n",
            TWO,
            r"line 1: has 3 columns, but the declared shape \[2, 3\] has 2 channels; choose",
        ),
        ("x,y\n1\n", TWO, "line 2: has 1 columns"),
        ("1," * 999_999 + "1", TWO, "line 1: has 1000000 columns"),
        ("1,2\n3", TWO, "line 2: expected 2 fields as in the first row, got 1"),
        ("1,2\n3,", TWO, "line 2, column 2: '' is not a number"),
        ("1,2\n3,4e", TWO, "line 2, column 2: '4e' is not a number"),
        ('1,2\n3,"4', TWO, "unexpected end of data"),
        ("1,2\n3,4,\n", TWO, "line 2: expected 2 fields as in the first row, got 3"),
        ("x,y\n", TWO, "is empty"),
        ("", TWO, "is empty"),
    ],
)
def test_a_fault_is_named_by_line_and_cell(text: str, declared: Declared, message: str) -> None:
    with pytest.raises(Exception, match=message) as caught:
        read_csv(text.encode(), declared)
    assert isinstance(caught.value, DecodeError) or "unexpected end" in message


@pytest.mark.parametrize(
    "header",
    [
        "x,y",
        "x [m/s],y",
        ",y",
        "# time,value",
        '"a, b",c',
        "Größe,ß",
        "e1,_2",
        "\ufeffx,y",
        "\n\nx,y",
    ],
)
def test_names_are_a_header(header: str) -> None:
    assert read_csv(f"{header}\n1,2\n3,-.4e1\n".encode(), TWO).values.tolist() == [[1, 3], [2, -4]]


@pytest.mark.parametrize(
    "text", ["1,2\r\n3,4\r\n", "1;2\n3;4", "1\t2\n3\t4\n\n", ' 1 , 2 \n"3","4"\n', "1,2\n\n3,4"]
)
def test_numbers_are_read_in_any_common_form(text: str) -> None:
    assert read_csv(text.encode(), TWO).values.tolist() == [[1, 3], [2, 4]]
