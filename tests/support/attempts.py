"""Queries that try to take all memory, all time or all disk: each was worth a try on SQLite."""

COUNT = "with recursive c(x) as (select 1 union all select x + 1 from c)"
LONG = "hex(zeroblob(8000000))"


def columns(expression, number):
    return "select " + ", ".join(f"{expression} as a{i}" for i in range(number))


def doubled(times):
    """Return common table expressions of which each is twice the one before, when compiled."""
    parts = ["a0 as (select 1 as x union all select 2)"]
    parts += [
        f"a{i + 1} as (select * from a{i} union all select * from a{i})" for i in range(times)
    ]
    return f"with {', '.join(parts)} select count(*) from a{times}"


def nested(function, argument, depth):
    return "select " + f"{function}(" * depth + argument + ")" * depth


ATTEMPTS = {
    # --- one huge value, or a hundred
    "a hundred long columns": columns(LONG, 100),
    "a hundred columns just short enough": columns("hex(zeroblob(500000))", 100),
    "two thousand columns": columns("zeroblob(16000000)", 2000),
    "four hundred columns of zeroes": columns("zeroblob(16000000)", 400),
    "constants kept in registers": "select " + " is ".join(["hex(zeroblob(900000))"] * 500),
    "constants in a long list": f"select 1 in ({', '.join([LONG] * 300)})",
    "random blobs": f"{COUNT} select randomblob(16000000) from c limit 100",
    "a format with a width": "select printf('%*d', 2000000000, 1)",
    "a format with a repeated character": columns("printf('%.*c', 15000000, 'x')", 60),
    "a doubling text": "with recursive t(s) as (select 'x' union all select s || s from t) "
    "select length(s) from t",
    "a replacement that explodes": "select length(replace(hex(zeroblob(100000)), '0', "
    "hex(zeroblob(100000))))",
    "quotes of quotes": "select length(quote(quote(quote(quote(hex(zeroblob(4000000)))))))",
    # --- aggregates
    "one text of all": f"{COUNT} select length(group_concat(hex(zeroblob(100000)))) from c",
    "one text in each of many groups": f"{COUNT} select x % 1000, group_concat(hex(randomblob("
    "4000))) from c group by x % 1000",
    "an array of all": f"{COUNT} select length(json_group_array(hex(zeroblob(100000)))) from c",
    "an object of all": f"{COUNT} select length(json_group_object(x, hex(zeroblob(1000)))) from c",
    "many aggregates at once": f"{COUNT}, "
    "d as (select hex(zeroblob(4000)) as h from c limit 100000) "
    + columns("group_concat(h)", 60)
    + " from d",
    "everything distinct": f"{COUNT} select count(distinct randomblob(10000)) from c",
    # --- sorting, windows, joins
    "blobs in order": f"{COUNT} select randomblob(100000) as b from c order by b",
    "a window over texts": f"{COUNT}, d as (select x, hex(zeroblob(1000)) as h from c "
    "limit 20000) select length(group_concat(h) over (order by x rows between 5000 preceding "
    "and current row)) from d",
    "a window over everything": f"{COUNT} select sum(x) over (order by x desc) from c",
    "a cross join": f"{COUNT}, d as (select x from c limit 10000) select count(*) from d a, d b, "
    "d c, d e",
    "a product of catalogs": "select count(*) from metrics a, metrics b, metrics c, metrics d, "
    "metrics e, metrics f, metrics g, metrics h",
    "a union that remembers": "with recursive c(x) as (select 1 union select x + 1 from c) "
    "select count(*) from c",
    "a recursion without end": f"{COUNT} select count(*) from c",
    "a recursion over blobs": "with recursive c(x, b) as (select 1, zeroblob(1000000) union all "
    "select x + 1, randomblob(1000000) from c order by 1) select count(b) from c",
    "a materialised table": f"{COUNT}, d as materialized (select randomblob(100000) as b from c) "
    "select count(*) from d a join d b on a.b = b.b",
    # --- single steps that take long
    "like with many signs": f"select {LONG} like '%0%0%0%0%0%0%0%0%0%0%0%0%0%0%0%0%0%0%0%0%1'",
    "like for every row": f"{COUNT} select count(*) from c where {LONG} like '%0%0%0%0%0%0%0%1%2'",
    "glob with sets": f"select {LONG} glob '*[0-8]*[0-7]*[0-6]*[0-5]*[0-4]*[0-3]*[0-2]*[1-9]'",
    "a search that nearly finds": f"{COUNT} select count(*) from c where "
    "instr(hex(zeroblob(4000000)), hex(zeroblob(2000000)) || '1')",
    "trimming by a long set": f"select length(trim({LONG}, hex(zeroblob(1000)) || '123456789'))",
    "a text read as json": "select json_array_length('[' || substr(replace(hex(zeroblob(3000000)), "
    "'0', '1,'), 1, 7999999) || ']')",
    "json changed in many places": "select length(json_set(json_group_array(x), "
    + ", ".join(f"'$[{i}]', x" for i in range(60))
    + f")) from ({COUNT} select x from c limit 300000)",
    "json of great depth": "select json_valid(replace(hex(zeroblob(4000000)), '0', '['))",
    "a table of json": "select count(*) from json_each('[' || substr(replace(hex(zeroblob("
    "3000000)), '0', '1,'), 1, 7999999) || ']') a, json_each('[1,2,3,4,5,6,7,8,9]') b",
    "characters by number": "select length("
    + " || ".join([f"char({','.join(['65'] * 100)})"] * 500)
    + ")",
    "sounds of a long text": f"{COUNT} select count(*) from c where soundex({LONG}) = 'x'",
    "upper and lower": f"{COUNT} select count(*) from c where upper(lower({LONG})) = 'x'",
    # --- compiling
    "expressions doubled when compiled": doubled(30),
    "brackets in brackets": "select " + "(" * 20_000 + "1" + ")" * 20_000,
    "functions in functions": nested("abs", "1", 5_000),
    "a long sum": "select " + " + ".join(["1"] * 100_000),
    "a long list of rows": "values " + ", ".join(["(1)"] * 150_000),
    "a join of sixty-four": "select count(*) from "
    + ", ".join(f"checkpoints t{i}" for i in range(64)),
    "cases in cases": "select " + "case when 1 then " * 3_000 + "1" + " end" * 3_000,
    # --- long answers
    "an answer without end": f"{COUNT} select x from c",
    "an answer of long rows": f"{COUNT} select hex(zeroblob(100000)) from c",
    "an answer of wide rows": columns("x", 400) + f" from ({COUNT} select x from c)",
    "one wide cell among many rows": f"{COUNT} select case when x = 1 then hex(zeroblob(1000000)) "
    "end, x from c",
    "an answer of signs": f"{COUNT} select char(1, 2, 3, 27, 128512) || hex(zeroblob(500)) from c",
}
