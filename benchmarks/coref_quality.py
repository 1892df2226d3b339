"""The quality of a coreference model on GAP's pronouns, and of a baseline without training.

    python benchmarks/coref_quality.py baseline test.conll
    python benchmarks/coref_quality.py gap MODEL_DIRECTORY gap-test.tsv [--max N]

The baseline's mentions are pronouns and runs of capitalised words inside a sentence; two are of one
entity if their head words, the last words, are the same but for capitals.

GAP (Webster et al. 2018, arXiv 1810.05201): each snippet has a pronoun and two names, and says for
each name whether the pronoun means that person. A name counts as found if the pronoun's predicted
cluster has a mention that shares a word with the name and does not contain the pronoun. The figures
are F1 over all names, F1 by the pronoun's gender, and the bias, feminine over masculine.
"""

import argparse
import csv
import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from spanbert_fast.data.text_files import decoded_lines
from spanbert_fast.tasks.coref import Coreference
from spanbert_fast.tasks.coref_documents import Cluster, Document, Span
from spanbert_fast.tasks.coref_metrics import coreference_scores

_PRONOUNS = frozenset(
    "i me my mine myself you your yours yourself he him his himself she her hers herself it its "
    "itself we us our ours ourselves they them their theirs themselves".split()
)
_GENDERS = {"he": "M", "him": "M", "his": "M", "she": "F", "her": "F", "hers": "F"}


def baseline(document: Document) -> list[Cluster]:
    """The clusters of mentions with equal head words."""
    clusters: dict[str, Cluster] = defaultdict(list)
    first = 0
    for sentence in document.sentences:
        place = 0
        while place < len(sentence):
            word = sentence[place]
            end = place
            if word.lower() not in _PRONOUNS and word[0].isupper() and place:
                while end + 1 < len(sentence) and sentence[end + 1][0].isupper():
                    end += 1
            elif word.lower() not in _PRONOUNS:
                place += 1
                continue
            clusters[sentence[end].lower()].append((first + place, first + end))
            place = end + 1
        first += len(sentence)
    return list(clusters.values())


class Snippet:
    """A row of GAP as a document whose words do not split the pronoun or the names."""

    def __init__(self, row: dict[str, str]):
        from spanbert_fast.tasks.coref_text import sentences_of

        text, self.gender = row["Text"], _GENDERS[row["Pronoun"].lower()]
        sentences = sentences_of(text)
        words = [word for sentence in sentences for word in sentence]
        starts, at = [], 0
        for word in words:
            at = text.index(word, at)
            starts.append(at)
            at += len(word)
        ends = [start + len(word) for start, word in zip(starts, words, strict=True)]

        def span(name: str) -> Span:
            begin = int(row[f"{name}-offset"])
            end = begin + len(row[name])
            inside = [
                i
                for i, (a, b) in enumerate(zip(starts, ends, strict=True))
                if a < end and b > begin
            ]
            return inside[0], inside[-1]

        self.pronoun = span("Pronoun")
        self.names = [(span(name), row[f"{name}-coref"] == "TRUE") for name in "AB"]
        self.document = Document(row["ID"], row["ID"], "0", sentences, None)

    def found(self, clusters: Sequence[Cluster]) -> list[bool]:
        """Whether each name is in the pronoun's cluster."""
        own = next((cluster for cluster in clusters if self.pronoun in cluster), [])
        return [
            any(
                start <= name[1] and name[0] <= end and not start <= self.pronoun[0] <= end
                for start, end in own
            )
            for name, _ in self.names
        ]


def gap_scores(snippets: Sequence[Snippet], predicted: Sequence[list[Cluster]]) -> dict[str, float]:
    """F1 in percent of all, of masculine and of feminine pronouns, and the bias."""
    counts = {gender: [0, 0, 0] for gender in "MF"}  # right, predicted, gold
    for snippet, clusters in zip(snippets, predicted, strict=True):
        of = counts[snippet.gender]
        for found, (_, gold) in zip(snippet.found(clusters), snippet.names, strict=True):
            of[0] += found and gold
            of[1] += found
            of[2] += gold

    def f1(right: int, guessed: int, there: int) -> float:
        return 200.0 * right / (guessed + there) if guessed + there else 0.0

    masculine, feminine = f1(*counts["M"]), f1(*counts["F"])
    both = [a + b for a, b in zip(counts["M"], counts["F"], strict=True)]
    bias = feminine / masculine if masculine else 0.0
    return {"f1": f1(*both), "masculine_f1": masculine, "feminine_f1": feminine, "bias": bias}


def main(arguments: list[str] | None = None) -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    kinds = parser.add_subparsers(dest="kind", required=True)
    kinds.add_parser("baseline").add_argument("file", type=Path)
    gap = kinds.add_parser("gap")
    gap.add_argument("model", type=Path)
    gap.add_argument("file", type=Path)
    gap.add_argument("--max", type=int, help="snippets")
    options = parser.parse_args(arguments)
    if options.kind == "baseline":
        documents = Coreference().read(options.file).items
        made = [baseline(document) for document in documents]
        figures = coreference_scores([d.clusters for d in documents], made)
    else:
        from spanbert_fast.data.tokenizer import load_tokenizer
        from spanbert_fast.models import SpanBertForCoreference
        from spanbert_fast.training.finetuning.run_directory import load_task

        lines = [re.sub(r"\s+$", "", line) for line in decoded_lines(options.file)]
        rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        snippets = [Snippet(row) for row in rows][: options.max]
        task = load_task(options.model, "coref")
        model = SpanBertForCoreference.from_pretrained(options.model)
        documents = [snippet.document for snippet in snippets]
        made = list(task.predictions(model, documents, load_tokenizer(options.model)))
        figures = gap_scores(snippets, made)
    for name, value in figures.items():
        print(f"{name:<24}{value:10.2f}")


if __name__ == "__main__":
    main()
