"""The rules of optimistic commit on a table of keys and values, with no database."""

from dataclasses import dataclass, field

OC000, OC001, DUPLICATE, ABORTED = "!OC000", "!OC001", "!23505", "!25P02"


@dataclass
class Transaction:
    """What one has seen and done since BEGIN.

    Attributes:
        snapshot: the rows when it began.
        began: the number of commits until then.
        rows: what it sees now.
        used: it has run a statement.
        touched: the keys that it has changed or locked.
        failed: the error after which it takes nothing but its end; told: once.

    """

    snapshot: dict[int, str]
    began: int
    rows: dict[int, str]
    used: bool = False
    touched: set[int] = field(default_factory=set)
    failed: str = ""
    told: bool = False


class Table:
    """Sessions that work on one table; each method returns an answer, or the error."""

    def __init__(self, rows: dict[int, str]):
        self.rows, self.commits = dict(rows), 0
        self.changed = dict.fromkeys(rows, 0)
        self.open: dict[str, Transaction] = {}

    def begin(self, who: str) -> str:
        self.open[who] = Transaction(dict(self.rows), self.commits, dict(self.rows))
        return "=BEGIN"

    def rollback(self, who: str) -> str:
        del self.open[who]
        return "=ROLLBACK"

    def commit(self, who: str) -> str:
        """First to commit wins; "=COMMIT or !OC000" where a key came and went again meanwhile."""
        mine = self.open.pop(who)
        if mine.failed and (mine.used or mine.told):
            return "=ROLLBACK" if mine.told else mine.failed
        news = {key for key in mine.touched if self.changed.get(key, 0) > mine.began}
        if any(key in mine.snapshot or key in self.rows for key in news):
            return OC000
        if news:
            self.open[who] = mine
            return f"=COMMIT or {OC000}"
        self.apply(mine)
        return "=COMMIT"

    def apply(self, mine: Transaction) -> None:
        self.commits += 1
        for key in mine.touched:
            self.changed[key] = self.commits
            self.rows.pop(key, None)
            if key in mine.rows:
                self.rows[key] = mine.rows[key]

    def grant(self, who: str) -> str:
        for other, theirs in self.open.items():
            if other != who and not theirs.failed:
                theirs.failed = OC001
        return "=GRANT"

    def play(self, who: str, what: str, key: int = 0, value: str = "") -> str:
        """The answer to a statement: rows or a tag after "=", an error after "!"."""
        if what in {"begin", "commit", "rollback", "grant"}:
            return str(getattr(self, what)(who))
        alone = who not in self.open
        if alone:
            self.begin(who)
        mine = self.open[who]
        if mine.failed:
            answer = ABORTED if mine.told else mine.failed
            mine.told = True
            return answer
        mine.used = True
        answer = self._within(mine, what, key, value)
        if answer == DUPLICATE:
            mine.failed, mine.told = DUPLICATE, True
        if alone:
            del self.open[who]
            if not mine.failed and what != "lock":
                self.apply(mine)
        return answer

    def _within(self, mine: Transaction, what: str, key: int, value: str) -> str:
        there = key in mine.rows
        if what == "add" and there:
            return DUPLICATE
        if what != "read" and (there or what in {"add", "put"}):
            mine.touched.add(key)
        match what:
            case "add" | "put":
                mine.rows[key] = value
                return "=INSERT 0 1"
            case "delete":
                mine.rows.pop(key, None)
                return f"=DELETE {int(there)}"
            case "set" if there:
                mine.rows[key] += value
        shown = sorted(mine.rows) if what == "read" else [key] if there else []
        return "=" + " ".join(f"{n}{mine.rows[n]}" for n in shown)
