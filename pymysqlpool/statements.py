"""Classify statements by their text: what they may leave in the session, and what they may commit."""

from __future__ import annotations

import re

from pymysql.constants import COMMAND

#: What a statement may leave in the session, apart from what the status flags of its reply show, from least to most:
#:
#: - READS: nothing, as it only reads
#: - TRANSACTION: nothing but a transaction, which it begins or ends
#: - DIRTY: something that a reset undoes
#: - DOUBTFUL: perhaps another database, which a reset keeps, or an XA transaction, which a reset damages
#: - LOST: something that no reset undoes, or a prepared XA transaction
#: - BROKEN: never from the text: there was an error after which the session must not be used again
READS, TRANSACTION, DIRTY, DOUBTFUL, LOST, BROKEN = range(6)

# All patterns are for statements in capitals. They are strings, which `re` compiles at the first use and caches:
# compiling them here would take half of the package's import time.

# A comment ends with the first `*/`. Text between `/*!` or `/*M!` and `*/` is executed, so it is not a comment.
# https://dev.mysql.com/doc/refman/8.4/en/comments.html, https://mariadb.com/kb/en/comment-syntax/
_COMMENT = r"/\*(?!M?!)[^*]*\*+(?:[^/*][^*]*\*+)*/"
# `--` before any other character does not match: whether it begins a comment depends on the character set.
_LINE_COMMENT = r"(?:--(?=[ \t\r\n])|\#)[^\n]*(?:\n|$)"
_IN_FRONT = rf"(?:\s|\(|{_COMMENT}|{_LINE_COMMENT})*"
_READING = rf"{_IN_FRONT}(?:SELECT|SHOW|VALUES|TABLE|(WITH|EXPLAIN|DESCRIBE|DESC))\b"
# A quoted NEXTVAL does not match, so that _SUSPECT finds it.
_QUOTED_OR_COMMENT = rf"('[^']*')|(\"(?!NEXTVAL\")[^\"]*\"|`(?!NEXTVAL`)[^`]*`)|{_COMMENT}|{_LINE_COMMENT}"
# What may do more than read in a statement that begins like a read. In the text that is searched a 0 has replaced each
# string, a ? each quoted name (which may be a string, too), and a blank each comment.
_SUSPECT = r"""(?x)
    :=                          # sets a variable
    | (?<![^\W\d])INTO\b        # sets a variable or writes a file; also right after a number
    | ;(?!\s*$)                 # a second statement
    | /\*!|/\*M!                # a comment that is executed
    | _LOCKS?\b                 # GET_LOCK(), and similar functions of plugins
    | \bLAST_INSERT_ID\W*\(\s*[^)\s]  # with an argument it sets what it returns
    | \bSQL_CALC_FOUND_ROWS\b
    | \bNEXTVAL\b | \bSETVAL\b | \bNEXT\s+VALUE\b  # MariaDB's sequences
    | \bDEFAULT\s*\(           # may be the next value of a sequence
    | \?\s*\(                  # the quoted name of a function
    | ['"`]                     # an unpaired quote
    | --                        # perhaps a comment, which may contain quotes
"""
# A statement that begins with WITH may write; EXPLAIN may run the statement that it explains.
_WRITING = r"\b(?:INSERT|UPDATE|DELETE|REPLACE|ANALYZE)\b(?!\s*\()"

# https://dev.mysql.com/doc/refman/8.4/en/commit.html. RELEASE, which ends the session, does not match.
_NAME = r"(?:\w+|`[^`]*`)"
_CHANGES_TRANSACTION = rf"""(?x){_IN_FRONT}(?:
    BEGIN(?:\s+WORK)?
    | START\s+TRANSACTION(?:\s+(?:WITH\s+CONSISTENT\s+SNAPSHOT|READ\s+(?:ONLY|WRITE))\s*,?)*
    | (?:COMMIT|ROLLBACK)(?:\s+WORK)?(?:\s+AND\s+(?:NO\s+)?CHAIN)?(?:\s+NO\s+RELEASE)?
    | (?:SAVEPOINT|RELEASE\s+SAVEPOINT|ROLLBACK(?:\s+WORK)?\s+TO(?:\s+SAVEPOINT)?)\s+{_NAME}
    )\s*;?\s*
"""
# Longer statements are not matched: thousands of blanks would take seconds.
_LONGEST = 1000
_ENDS_TRANSACTION = rb"(?i)\s*(?:COMMIT|ROLLBACK)(?:\s+WORK)?\s*;?\s*"
# The name, or the last other character, at the end of the text before a parenthesis.
_NAME_AT_END = r"(?:\.\s*)?[\w$\ufffd]+$|\S?$"  # U+FFFD stands for any letter that is not ASCII
# The words before a parenthesis that certainly do nothing but read. Any other name may be a stored function, which may
# write.
_PURE = frozenset(
    """
    ABS ADDDATE ADDTIME ALL AND ANY ANY_VALUE AS ASCII AVG BETWEEN BIN BIT_AND BIT_COUNT BIT_LENGTH BIT_OR BY CASE
    CAST CEIL CEILING CHAR CHARACTER_LENGTH CHAR_LENGTH COALESCE CONCAT CONCAT_WS CONNECTION_ID CONV CONVERT COUNT
    CURDATE CURRENT_DATE CURRENT_ROLE CURRENT_TIME CURRENT_TIMESTAMP CURRENT_USER CURTIME DATABASE DATE DATEDIFF
    DATE_ADD DATE_FORMAT DATE_SUB DAY DAYNAME DAYOFMONTH DAYOFWEEK DAYOFYEAR DECIMAL DENSE_RANK DISTINCT DIV ELSE ELT
    EXISTS EXTRACT FIELD FIND_IN_SET FIRST_VALUE FLOOR FORMAT FOUND_ROWS FROM FROM_UNIXTIME GREATEST GROUPING
    GROUP_CONCAT HAVING HEX HOUR IF IFNULL IN INDEX INET6_ATON INET6_NTOA INET_ATON INET_NTOA INSTR INTERVAL IS
    ISNULL JOIN JSON_ARRAY JSON_ARRAYAGG JSON_CONTAINS JSON_EXTRACT JSON_KEYS JSON_LENGTH JSON_OBJECT JSON_OBJECTAGG
    JSON_UNQUOTE JSON_VALUE KEY LAG LAST_DAY LAST_INSERT_ID LAST_VALUE LCASE LEAD LEAST LEFT LENGTH LIKE LN LOCATE
    LOG LOG10 LOG2 LOWER LPAD LTRIM MAX MD5 MICROSECOND MID MIN MINUTE MOD MONTH MONTHNAME NOT NOW NTILE NULLIF OCT
    ON OR ORD OVER PARTITION PERCENT_RANK PI POSITION POW POWER QUARTER RADIANS RAND RANK REGEXP REGEXP_REPLACE
    REGEXP_SUBSTR REPEAT REPLACE REVERSE RIGHT ROUND ROW ROW_COUNT ROW_NUMBER RPAD RTRIM SECOND SELECT SHA1 SHA2 SIGN
    SOME SPACE SQRT STD STDDEV STR_TO_DATE SUBDATE SUBSTR SUBSTRING SUBSTRING_INDEX SUM SYSDATE THEN TIME TIMEDIFF
    TIMESTAMP TIMESTAMPADD TIMESTAMPDIFF TO_DAYS TRIM TRUNCATE UCASE UNHEX UNION UNIX_TIMESTAMP UPPER USER USING
    UTC_DATE UTC_TIME UTC_TIMESTAMP UUID VALUES VARCHAR VARIANCE VERSION WEEK WEEKDAY WEEKOFYEAR WHEN WHERE WINDOW
    XOR YEAR
    """.split()  # noqa: SIM905  a list takes a line for each
)


def left_by(command: int, sql: bytes, encoding: str = "ascii") -> int:  # noqa: C901, PLR0911  one for each class
    """Return what `command` may leave in its session: READS, TRANSACTION, DIRTY, DOUBTFUL or LOST.

    `sql` is its text, in the connection's `encoding`. What is not recognized is at least DIRTY: a mistake on that side
    costs a reset and no more.
    """
    if command != COMMAND.COM_QUERY:
        return {COMMAND.COM_PING: READS, COMMAND.COM_INIT_DB: DOUBTFUL}.get(command, LOST)
    # `in` takes a fifth as long in a str as in bytes. Characters that are not ASCII matter only where quotes
    # are paired, in _only_reads().
    text = sql.decode("ascii", "replace").upper()
    if text.startswith("SELECT "):
        if not _has_suspects(text) or _only_reads(sql, encoding):
            return READS
    elif text in ("COMMIT", "ROLLBACK", "BEGIN", "SET AUTOCOMMIT = 0", "SET AUTOCOMMIT = 1"):
        return TRANSACTION  # the last two are sent by PyMySQL's autocommit(), and the status flags tell their effect
    elif text.startswith(("INSERT ", "UPDATE ", "DELETE ", "REPLACE ")):
        if ";" not in text and "/*" not in text:
            return DIRTY  # no matter what words its strings contain
    elif text.startswith("SET "):
        pass
    elif reading := re.match(_READING, text):
        if not (_has_suspects(text) or reading[1]) or _only_reads(sql, encoding, also=_WRITING if reading[1] else ""):
            return READS
    elif len(text) < _LONGEST and re.fullmatch(_CHANGES_TRANSACTION, text):
        return TRANSACTION
    if _is_kept_by_reset(text):
        return LOST
    return DOUBTFUL if _may_outlast_reset(text) else DIRTY


def certainly_reads(command: int, sql: bytes) -> bool:
    """Whether a command that left_by() classifies as READS calls no function that may write, so it may run twice."""
    if command != COMMAND.COM_QUERY:
        return True
    text = re.sub(_IN_FRONT, "", sql.decode("ascii", "replace").upper(), count=1)
    if "--" in text or "#" in text:  # there may be a line comment between a name and its parenthesis
        return False
    # No regular expression searches the whole text, as a literal may be long. No name has more than 64 characters.
    in_front = [part.rstrip()[-80:] for part in text.split("(")[:-1]]
    names = [re.findall(_NAME_AT_END, part)[0] for part in in_front]
    return all(name in _PURE or name in "=<>,+-*%|&!^" for name in names)


def writes(sql: bytes) -> bool:
    """Whether the affected rows that the server reports for the statement were written, not read."""
    return re.match(rb"(?i)[\s(]*(?:SELECT|SHOW|EXPLAIN|DESC|WITH|VALUES|TABLE)\b", sql) is None


def ends_transaction(sql: bytes) -> bool:
    """Whether no transaction is open after the statement, even if the status flags cannot tell."""
    return len(sql) < _LONGEST and re.fullmatch(_ENDS_TRANSACTION, sql) is not None


def may_commit(sql: bytes, *, in_transaction: bool) -> bool:
    """Whether the statement may commit what it has written, or what the transaction that it runs in has written."""
    text = sql.decode("ascii", "replace").upper()
    if re.search(r";(?!\s*$)", text) or "/*!" in text or "/*M!" in text:
        return True
    if re.match(rf"{_IN_FRONT}ROLLBACK\b", text):
        return False
    if re.match(_READING, text):
        return not in_transaction and not certainly_reads(COMMAND.COM_QUERY, sql)
    return not (in_transaction and re.match(rf"{_IN_FRONT}(?:INSERT|UPDATE|DELETE|REPLACE|SAVEPOINT)\b", text))


# The functions below use `in`, which is a fast search in C, for each word. A loop over the words takes twice as long, a
# regular expression ten times.


def _is_kept_by_reset(text: str) -> bool:
    """Whether the statement may set what no reset undoes, or prepare an XA transaction.

    The former is MySQL's resource group and optimizer trace, and MariaDB's profiles and SET SESSION AUTHORIZATION. The
    latter is for any session to commit once its own has ended. If its own is reset instead, and another one ends it,
    MariaDB keeps its locks forever.
    """
    return (
        "PROFILING" in text
        or "OPTIMIZER_TRACE" in text
        or ("RESOURCE" in text and "GROUP" in text)
        or ("AUTHORIZATION" in text and "SESSION" in text)
        or ("PREPARE" in text and _has_word(text, "XA"))
    )


def _may_outlast_reset(text: str) -> bool:
    """Whether the statement may select a database or be a part of an XA transaction.

    If this overlooks a statement, the reset fails, and the session is replaced.
    """
    return (
        "DATABASE" in text
        or "SCHEMA" in text
        or "CALL" in text
        or "EXECUTE" in text
        or _has_word(text, "USE")
        or _has_word(text, "XA")
    )


def _has_word(text: str, word: str) -> bool:
    """Whether the text contains the word, also at the start of a comment that is executed."""
    return word in text and re.search(rf"(?:\b|/\*M?!\d*){word}\b", text) is not None


def _has_suspects(text: str) -> bool:
    """Whether a statement that begins like a read has to be examined by _only_reads()."""
    return (
        ":=" in text
        or ";" in text
        or "INTO" in text
        or "/*" in text
        or "_LOCK" in text
        or "LAST_INSERT_ID" in text
        or "SQL_CALC" in text
        or "NEXT" in text
        or "SETVAL" in text
        or "DEFAULT" in text
    )


def _only_reads(sql: bytes, encoding: str, also: str = "") -> bool:
    """Whether the statement only reads, by its text without quoted parts and comments. `also` is one more pattern."""
    try:
        text = sql.decode(encoding).upper()
    except UnicodeDecodeError:  # the server may decode it differently: a quote can be a character's second byte
        return False
    if "\\" in text:  # whether it escapes a quote depends on the sql_mode
        return False
    text = re.sub(_QUOTED_OR_COMMENT, lambda found: " 0 " if found[1] else " ? " if found[2] else " ", text)
    text = re.sub(r"\bFOR\s+UPDATE\b", "", text)
    return not re.search(_SUSPECT, text) and not (also and re.search(also, text))
