"""Shared by the tests of relations: files of two formats."""


def written(path, text):
    path.write_text(text, encoding="utf-8", newline="")
    return path


def tacred(**fields) -> dict:
    item = {
        "id": "a1", "token": "Ann -LRB- 9 -RRB- left New York".split(), "relation": "per:city",
        "subj_start": 0, "subj_end": 0, "subj_type": "PERSON",
        "obj_start": 5, "obj_end": 6, "obj_type": "CITY",
    }  # fmt: skip
    return {**item, **fields}


SEMEVAL = (
    '7\t"The <e1>tall child</e1> was put in the <e2>cradle</e2>."\r\n'
    "Entity-Destination(e1,e2)\r\nComment: quite so\r\n\r\n"
    '8\t""So," he said, "<e2> wax</e2>es are in <e1>tins</e1>""\r\nOther\r\nComment:\r\n\r\n'
)
