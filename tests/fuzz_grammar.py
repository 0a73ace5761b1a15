"""What the fuzzer's borrowers may do: the schema, and a grammar of statements and calls that use it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Callable

from pymysql.constants import CLIENT, FIELD_TYPE
from pymysql.cursors import DictCursor, SSCursor
from pymysql.err import DataError

if TYPE_CHECKING:
    import random

#: The schema, its neighbour, and the beginning of all names of users and roles.
NAME = "pymysqlpool_fuzz"
OTHER = f"{NAME}_other"
ROLE = f"{NAME}_role"
DEFAULT_ROLE = f"{NAME}_role_2"
GROUP = f"{NAME}_group"

VARIABLES = ["v1", "v2", "v3"]
LOCKS = ["fuzz_1", "fuzz_2"]
PREPARED = ["p1", "p2"]
TEMPORARY = ["tmp1", "tmp2", "t1"]
#: The first random number of a session with these seeds.
SEEDS, FIRST_OF_SEEDS = "rand_seed1 = 1, rand_seed2 = 2", 4.656612877414201e-09


# The schema

# What code in the server does that its caller does not see: each of them is the body of a function, of a procedure, and
# of the three triggers of a table. What the server does not allow in one of them is missing there. Profiling and the
# optimizer's trace are in none: no reset ends them, only their text shows them, and the README names this limit.
EFFECTS = {
    "var": "set @v1 = 'effect'",
    "into": "select 'effect' into @v2",
    "assign": "do (@v3 := 'effect')",
    "diagnostics": "get diagnostics @v3 = number",
    "lock": "do get_lock('fuzz_1', 0)",
    "untracked": "set session session_track_state_change = 0",
    "untracked_var": "begin set session session_track_state_change = 0; select 'effect' into @v1; end",
    "size": "set session sort_buffer_size = 262144",
    "limit": "set session sql_select_limit = 7",
    "zone": "set session time_zone = '+05:00'",
    "names": "set names latin1",
    "last": "do last_insert_id(77)",
    "role": f"set role {ROLE}",
    "no_role": "set role none",
    "temporary": "create temporary table if not exists tmp1 (a int)",
    "seeds": f"set {SEEDS}",
    "isolation": "set session transaction isolation level serializable",
    "row": "insert into ledger (word) values ('effect')",
}

_COLUMNS = "(a int auto_increment primary key, b varchar(200))"
TABLES = {
    "ledger": "(id bigint auto_increment primary key, word varchar(200)) engine=innodb",
    "dirty": "(id bigint primary key) engine=innodb",
    "t1": f"{_COLUMNS} engine=innodb",
    "t2": f"{_COLUMNS} engine=myisam",
    "block_list": f"{_COLUMNS} engine=innodb",
    "clocks": f"{_COLUMNS} engine=innodb",
    **{f"g_{effect}": f"{_COLUMNS} engine=innodb" for effect in EFFECTS},
}

PROCEDURES = {
    "p_echo(word varchar(200))": "select word",
    "p_note(word varchar(200))": "set @v1 = word",
    "p_out(inout x varchar(200))": "set x = concat(ifnull(x, ''), 'out')",
    "p_results()": "begin select 1; select a, b from t1; select 3; end",
    "p_opens()": "begin start transaction; insert into ledger (word) values ('opens'); end",
    "p_shows_and_opens()": "begin select 1; start transaction; insert into ledger (word) values ('opens'); end",
    "p_opens_and_shows()": "begin start transaction; insert into ledger (word) values ('opens'); select 1; end",
    "p_opens_and_fails()": (
        "begin start transaction; insert into ledger (word) values ('opens'); "
        "signal sqlstate '45000' set message_text = 'why'; end"
    ),
    "p_shows_opens_and_fails()": (
        "begin select 1; start transaction; insert into ledger (word) values ('opens'); "
        "signal sqlstate '45000' set message_text = 'why'; end"
    ),
    "p_commits()": "begin insert into ledger (word) values ('commits'); commit; end",
    "p_rolls_back()": "begin insert into ledger (word) values ('rolls back'); rollback; end",
    "p_prepares()": "begin prepare p1 from 'select 1'; execute p1; end",
    "p_uses_text(word text)": "begin set @v3 = word; prepare p2 from @v3; execute p2; end",
    "p_autocommit()": "set autocommit = 1 - @@autocommit",
}

OPENING = (
    "p_opens", "p_shows_and_opens", "p_opens_and_shows", "p_opens_and_fails", "p_shows_opens_and_fails",
)  # fmt: skip


def schema(*, on_mariadb: bool) -> list[str]:
    """The statements that make the schema's objects, in the schema."""
    kind = "sql security invoker" + ("" if on_mariadb else " deterministic")
    statements = [f"create table {name} {columns}" for name, columns in TABLES.items()]
    for effect, body in EFFECTS.items():
        statements += [
            # Enough rows for a long run: restoring them would run the triggers.
            f"insert into g_{effect} (b) values {', '.join(['(1)'] * 1000)}",
            f"create function f_{effect}() returns int {kind} begin {body}; return 1; end",
            f"create procedure p_{effect}() sql security invoker {body}",
            f"create sql security invoker view w_{effect} as select f_{effect}() as a",
            f"create trigger i_{effect} before insert on g_{effect} for each row {body}",
            f"create trigger u_{effect} after update on g_{effect} for each row {body}",
            f"create trigger d_{effect} before delete on g_{effect} for each row {body}",
        ]
    statements += [
        f"create procedure {signature} sql security invoker {body}" for signature, body in PROCEDURES.items()
    ]
    statements.append(f"create function f_pure(x int) returns int {kind} return x + 1")
    statements.append("create view w_pure as select f_pure(a) as a, b from t1")
    if on_mariadb:
        statements.append("create sequence s1")
    return statements


#: The statements that restore the rows.
CLEAN_UP = [
    "delete from ledger",
    "insert into ledger values (1, 'first')",
    *(
        f"delete from {table}; insert into {table} values (1, 'a'), (2, 'b'), (3, 'c')"
        for table in ("t1", "t2", "block_list", "clocks")
    ),
    "drop table if exists x1, x2",
    "drop view if exists x2",
    f"drop table if exists {OTHER}.x1, {OTHER}.x2",
    f"drop view if exists {OTHER}.x2",
]


# Statements. A line is a kind; what stands in braces is a method of `Grammar`.

READS = r"""
select 1
select {n} + {n} as `a`, {word}
select * from {t}
select a, b from {t} where b = {word} limit 2
select a, count(*) from {t} group by a having count(*) > {n} order by 1 desc
select * from {t} where a = {n} for update
select * from {t} lock in share mode
select * from {t} where a = {n} for update skip locked
select * from {t} for update nowait
select distinct b from {t} union all select {word} order by 1
select t.a from {t} as t left join {t} as u on t.a = u.a
select (select max(a) from {t}) as biggest
select * from (select a from {t}) as inner_one
select f_pure({n})
select * from w_pure
select 'a@b.c', "d@e.f"
select @@version, @@session.sql_mode, @@global.max_connections
select @v1, @v2
select database(), current_user(), connection_id(), now()
select last_insert_id()
select found_rows()
select row_count()
select count(*) from {ledger}
select word from {ledger} where id > {n}
select 1 from dual where {word} like {word}
select sleep(0)
select 1 /* it's a comment */ + 1
select 1 -- '
select {t}.* from {t} where a in (1, 2, 3) procedure analyse()
select json_extract('{"a": "x@y"}', '$.a')
select b from {t} where b regexp '^[a-z]+$'
(select 1)
((select a from {t}) union (select 2))
with x as (select {n} as n) select * from x
with recursive x as (select 1 as n union all select n + 1 from x where n < 20) select * from x
select a.a from {t} a, {t} b, {t} c, {t} d
select * from nowhere
select nothing from {t}
select 1 +
select cast('x' as unsigned), 1 / 0
select is_free_lock({lock}), is_used_lock({lock})
select user, host from information_schema.processlist
values row(1, 2)
table t1
show tables
show tables like 't%'
show session variables like 'sql_mode'
show warnings
show errors
show processlist
show create table {t}
show full columns from {t}
show table status like 't1'
show engines
show grants
explain select * from {t}
explain format=json select a from {t}
describe {t}
desc t1 a
help 'select'
"""

SUSPECT_READS = r"""
select @v1 := {n}
select @`v2` := {word}
select @'v3' := a from {t}
select (@"v1" := 1) + 1
select a, @v1 := @v1 + a from {t} order by (@v2 := 2)
select * from {t} where (@v3 := a) > 0
select /* hidden */ @v1/**/:=/**/5
select 1 into @v1
select {word} into @`v2`
select a, b from {t} limit 1 into @v1, @v2
select a into @v3 from {t} limit 1
select a into @v1 from {t} limit 1 for update
(select 7 into @v1)
select * from (select @v2 := 3) as x
select case when 1 then @v1 := 'case' end
select if(1, @v3 := 'if', 0)
select benchmark(1, @v1 := 1)
with x as (select @v1 := 4 as a) select * from x
with x as (select 5 as a) select a into @v2 from x
select 1 union select @v1 := 2
select {getlock}({lock}, 0)
select {getlock}({lock}, 0), {getlock}({lock}, 0)
select * from {t} where {getlock}({lock}, 0) = 1
select release_lock({lock})
select release_all_locks()
select last_insert_id({n} + 40)
select `last_insert_id`(51)
select LAST_INSERT_ID(61) from {t}
select sql_calc_found_rows * from {t} limit 1
select distinct sql_calc_found_rows a from {t} limit 1
select 1 into outfile '/nonexistent/fuzz'
select 1 into dumpfile '/nonexistent/fuzz'
show variables where (@v1 := 3)
show tables where {getlock}({lock}, 0)
show columns from t1 where @v2 := 1
explain select @v1 := 1
explain select {getlock}({lock}, 0)
select 'x' 'y', @v1 := 'it''s'
select '\\', @v1 := '\''
select '\'', {getlock}({lock}, 0), '\''
select "a""b", @v2 := 'c'
select /*!50000 @v1 := 1, */ 2
select 1 /*!50000 into @v1 */
select 1 /*! , get_lock('fuzz_1', 0) */
select 1 /*!99999 , @v1 := 1 */
select '{gbk}', @v1 := 'x'
select '{gbk}, @v1 := 1 -- '
select rand({n})
"""

WRITES = r"""
insert into {ledger} values ({id}, {word})
insert into {ledger} values ({id}, {word})
insert into {ledger} (word) values ({word})
insert into {ledger} (word) values ({word}), ({word})
insert {ledger} set id = {id}, word = {word}
insert ignore into {ledger} values (1, 'again')
insert into {ledger} values (1, 'again')
insert into {ledger} values (1, 'x') on duplicate key update word = {word}
insert into {ledger} (word) select b from t1
replace into {ledger} values ({id}, {word})
update {ledger} set word = {word}
update {ledger} set id = last_insert_id(id + 1000) where id > 1000 limit 1
delete from {ledger} where id > 1
insert into {t} (b) values ({word})
insert into {t} (b) values ({f})
insert into {t} (b) select {f}
insert into {t} (b) select a from {w}
insert into {t} (b) values (@v1 := 'x')
insert into {t} (b) values ({getlock}({lock}, 0))
insert into {t} values (1, 'x') on duplicate key update b = {f}
replace into {t} (b) values ({f})
replace into {t} values (2, @v2 := 'x')
update {t} set b = {f} where a = 1
update {t} set b = 'x' where {f} = 1
update {t} set b = (@v3 := 'y')
update {t} set b = 'z' where a = (select a from {w})
update {t}, (select {f} as x) as y set b = y.x
update {t} set a = last_insert_id(a) where a = 3
update {t} set b = 'q' order by {f} limit 1
delete from {t} where {f} = 99
delete from {t} where a = (@v1 := 3)
delete from {t} where a = 3 and {getlock}({lock}, 0) = 0
delete t1 from t1 join t2 on t1.a = t2.a where {f} = 1
insert into {g} (b) values ('x')
insert into {g} values (1, 'x') on duplicate key update b = 'y'
replace into {g} values (1, 'x')
insert ignore into {g} values (1, 'x')
update {g} set b = concat(b, 1) limit 2
delete from {g} limit 1
insert into nowhere values (1)
insert into {t} values (1, {word})
load data local infile '/dev/null' into table t1
do {f}
do {n} + 1
do @v1 := 1
do {getlock}({lock}, 0)
do release_lock({lock})
do last_insert_id(88)
do sleep(0)
create table x1 (a int)
create table x1 as select {f} as a
create table if not exists x1 as select @v1 := 1 as a
create table x1 like t1
drop table if exists x1
alter table x1 add column c int
truncate table t2
truncate t1
rename table x1 to x2, x2 to x1
create index i1 on x1 (a)
create or replace view x2 as select 1
analyze table t1
check table t1
checksum table t1
optimize table t2
"""

SETS = r"""
set @v1 = {n}
set @v1 = {word}, @v2 = {n}
set @`v2` := 'x', @'v3' = 'y'
set @v1 = {f}
set @v1 = {getlock}({lock}, 0)
set @v1 = last_insert_id(99)
set @v1 = (select max(a) from t1)
set @v1 = 1, sql_mode = '', names latin1
set names {charset}
set names {charset} collate {charset}_bin
set character set {charset}
set names default
set character_set_results = null
set character_set_client = gbk
set character_set_connection = latin1
set collation_connection = utf8mb4_bin
set collation_database = latin1_bin
set collation_server = latin1_bin
set sql_mode = 'ansi_quotes'
set sql_mode = 'ansi'
set sql_mode = 'no_backslash_escapes'
set sql_mode = ''
set session sql_mode = concat(@@sql_mode, ',pipes_as_concat')
set @@session.sql_mode = 'traditional'
set autocommit = 0
set autocommit = 1
set @@autocommit = 1 - @@autocommit
set session transaction isolation level serializable
set session transaction read only
set session transaction isolation level read uncommitted, read only
set transaction isolation level read uncommitted
set transaction isolation level serializable
set transaction read only
set time_zone = '-03:00'
set timestamp = 86400
set insert_id = 4711
set last_insert_id = 55
set identity = 56
set {seeds}
set foreign_key_checks = 0, unique_checks = 0
set sql_select_limit = 1
set sql_safe_updates = 1
set sql_auto_is_null = 1
set sql_big_selects = 0, max_join_size = 1
set sql_notes = 0, sql_warnings = 1
set sql_log_bin = 0
set big_tables = 1
set lc_time_names = 'de_DE'
set wait_timeout = 100, interactive_timeout = 101
set net_write_timeout = 99, net_read_timeout = 98
set max_sort_length = 64
set group_concat_max_len = 16
set innodb_lock_wait_timeout = 1, lock_wait_timeout = 1
set default_storage_engine = myisam
set tmp_table_size = 4096
set optimizer_switch = 'index_merge=off'
set profiling = 1
set optimizer_trace = 'enabled=on'
set session_track_state_change = 0
set session session_track_state_change = off
set session_track_schema = 0
set session_track_system_variables = '*'
set session_track_system_variables = ''
set session_track_transaction_info = 'characteristics'
set completion_type = 1
set completion_type = 'release'
set pseudo_thread_id = 99
set div_precision_increment = 1
set session {setting} = {value}
set session {setting} = {value}
set session {setting} = {value}
set @@{setting} = {value}
set {setting} = {value}, {setting} = {value}
set role {role}
set role none
set role all
set role default
set role nobody
set session authorization root@localhost
set nothing = 1
set @v1 = 1; -- and a comment
"""

TRANSACTIONS = r"""
begin
begin work
start transaction
start transaction read only
start transaction with consistent snapshot
start transaction with consistent snapshot, read only
commit
commit work
commit and chain
commit and no chain no release
commit release
rollback
rollback and chain
rollback release
rollback to sp1
savepoint sp1
savepoint `sp1`
release savepoint sp1
rollback to savepoint `sp1`
xa start 'fuzz'
xa end 'fuzz'
xa start 'fuzz'; -- '
xa prepare 'fuzz'
xa rollback 'fuzz'
xa commit 'fuzz'
xa commit 'fuzz' one phase
xa recover
call {opening}()
call {opening}()
call p_commits()
call p_rolls_back()
call p_autocommit()
"""

OTHERS = r"""
use {other}
use {db}
use mysql
use `{other}`
use nowhere
create temporary table tmp1 (a int) engine=innodb
create temporary table if not exists tmp2 as select 1 as a
create temporary table t1 (a int)
create temporary table {other}.tmp1 (a int)
create /* x */ temporary/**/table tmp2 (a int)
drop temporary table if exists tmp1
insert into tmp1 values (1)
select * from tmp1
prepare p1 from 'select 1'
prepare p2 from 'set @v1 = 9'
prepare p1 from 'insert into ledger (word) values (?)'
execute p1
execute p2
execute p1 using @v1
deallocate prepare p1
drop prepare p2
lock tables {t} write
lock tables t1 read, t2 write
lock table t1 as x read local
lock tables ledger read
unlock tables
flush tables
flush tables with read lock
flush tables t1 with read lock
flush tables t1 for export
flush local tables t2
flush status
flush local hosts
handler t1 open
handler t1 open as h
handler t1 read first
handler h read first
handler h read next where (@v1 := a)
handler t1 close
call p_echo({word})
call p_echo({getlock}({lock}, 0))
call p_note({word})
call p_note('/* app */ select 1')
call p_out(@v1)
call p_results()
call p_prepares()
call p_uses_text('set @v2 = 8')
call p_uses_text('select 1')
call {p}()
call {p}
call {db}.{p}()
call nowhere()
signal sqlstate '45000' set message_text = 'why'
signal sqlstate '01000'
signal sqlstate 'HY000' set mysql_errno = {errno}, message_text = 'why'
get diagnostics @v1 = number
get diagnostics condition 1 @v2 = message_text
kill query connection_id()
kill connection_id()
reset query cache
flush user_resources
/*!50000use {other}*/
/*!50000 use mysql */
/*!50000call p_var()*/
/*!50000call {p}()*/
/*!call {p}()*/
/*!50000set role {role}*/
/*!50000set*/ @v1 = 1
/*! select @v1 := */ 1
/* app */ call p_note('/* app */ select 1')
/* app */ set @v1 = '/* app */ select 1'
/* '*/ set @v1 = 1 /* ' */
-- it's\nset @v1 = 1
# select\nuse {other}
/*/ select 1 */ set @v2 = 2 /*/ */
select 1; set @v1 = 1
select 1; start transaction; insert into ledger (word) values ('many')
select 1; insert into ledger (word) values ('many'); select 2
select 1; use {other}
select 1; select nothing
select 1; start transaction; insert into ledger (word) values ('many'); select nothing
insert into ledger (word) values ('many'); select {getlock}({lock}, 0)
begin; insert into ledger (word) values ('many'); commit
commit; select 1; begin
set @v1 = 1;
;
"""

# One after the other.
SCRIPTS = r"""
xa start 'fuzz' => insert into ledger (word) values ('xa') => xa end 'fuzz'
xa start 'fuzz' => insert into ledger (word) values ('xa') => xa end 'fuzz' => xa prepare 'fuzz'
xa start 'fuzz' => update {t} set b = {f} => xa end 'fuzz' => xa commit 'fuzz' one phase
xa start 'fuzz' => select * from {t} for update => xa end 'fuzz' => xa prepare 'fuzz' => select 1
begin => insert into ledger (word) values ('begun') => savepoint sp1 => rollback to sp1
begin => insert into ledger (word) values ('begun') => savepoint `sp1` => release savepoint `sp1` => commit
savepoint sp1 => insert into ledger (word) values ('saved')
start transaction => insert into ledger (word) values ('begun') => create temporary table tmp1 (a int)
start transaction read only => select * from {t} => commit and chain
set completion_type = 1 => begin => commit
begin => commit and chain => insert into ledger (word) values ('chained')
set autocommit = 0 => insert into ledger (word) values ('off') => select 1
set autocommit = 0 => select * from {t} => set autocommit = 1
set autocommit = 0 => select * from t2
create temporary table tmp1 (a int) => insert into tmp1 values (1) => select * from tmp1
create temporary table t1 (a int) => select * from t1
prepare p1 from 'select 1' => execute p1
prepare p2 from 'set @v1 = 9' => execute p2 => deallocate prepare p2
prepare p1 from 'select get_lock(?, 0)' => set @v1 = 'fuzz_2' => execute p1 using @v1
handler t1 open => handler t1 read first => select 1
handler t1 open as h => handler h read next
set session_track_state_change = 0 => set @v1 = 1
set session_track_state_change = 0 => use {other}
set session_track_state_change = 0 => insert into {g} (b) values ('x')
do f_untracked() => update {t} set b = {f}
insert into g_untracked (b) values (1) => insert into {g} (b) values (1)
set sql_mode = 'ansi_quotes' => select "get_lock"('fuzz_1', 0)
set sql_mode = 'ansi_quotes' => select "a", "@v1 := 1" from t1
set sql_mode = 'no_backslash_escapes' => select '\', {getlock}('fuzz_1', 0), '\'
set sql_mode = 'no_backslash_escapes' => select '\', @v1 := 1, '\'
set sql_mode = 'ignore_space' => select get_lock ('fuzz_1', 0)
set names gbk => select '{gbk}', @v1 := 1
set names gbk => select '{gbk}, @v1 := 1 -- '
set character_set_client = gbk => select '{gbk} union select get_lock(0x66757a7a5f31, 0) -- '
set optimizer_trace = 'enabled=on' => {read} => set optimizer_trace = 'enabled=off'
set profiling = 1 => {read} => set profiling = 0
set role {role} => set role none
set role {role} => select current_role()
set role {role} => commit release
use {other} => use {db}
use {other} => insert into t1 (b) values ('x') => select * from t1
lock tables t1 write => insert into t1 (b) values ('x')
lock tables t1 write => select 1 => begin
lock tables t1 read => insert into ledger (word) values ('locked')
flush tables with read lock => insert into ledger (word) values ('locked')
flush tables with read lock => select 1 => unlock tables
select get_lock('fuzz_1', 0) => select get_lock('fuzz_1', 0) => select release_lock('fuzz_1')
set transaction read only => select 1
set transaction isolation level read uncommitted => begin => commit
set sql_select_limit = 1 => select * from {t}
set timestamp = 86400 => insert into ledger (word) values (now())
set insert_id = 5000 => insert into t1 (b) values ('x')
insert into ledger (word) values ('x') => select last_insert_id()
insert into ledger (word) values ('x') => rollback
insert into ledger (word) values ('x') => call {opening}() => select 1
select 1 into @v1 => commit
select @v1 := 1 => rollback
call p_echo('x') => begin
call {opening}() => call {opening}()
call {opening}() => {read}
"""

ON_MARIADB = r"""
select nextval(s1)
select next value for s1
select nextval(`s1`), lastval(s1)
select `nextval`(s1)
select setval(s1, {n})
select previous value for s1
select s1.nextval
insert into t1 (b) values (nextval(s1))
do nextval(s1)
insert into {t} (b) values ('x') returning a, {f}
delete from {t} returning (@v1 := a)
replace into {g} values (1, 'x') returning a
insert into {g} (b) values ('x') returning a, b
execute immediate 'set @v1 = 7'
execute immediate 'select 1'
execute immediate concat('use ', '{other}')
set statement max_statement_time = 1 for select 1
set statement sort_buffer_size = 100000 for select @v1 := 1
set statement max_statement_time = 1 for insert into ledger (word) values ('statement')
set statement sql_mode = 'ansi_quotes' for call {p}()
begin not atomic set @v1 = 6; end
begin not atomic start transaction; insert into ledger (word) values ('compound'); end
begin not atomic select 1; start transaction; insert into ledger (word) values ('compound'); end
begin not atomic declare exit handler for sqlexception begin end; select {getlock}({lock}, 0); end
if 1 then set @v1 = 1; end if
for i in 1..2 do set @v2 = i; end for
/*M! set @v1 = 1 */
/*M!100100 use {other} */
/*M! select @v1 := 1 */
select 1 /*M! , @v1 := 2 */
analyze update t1 set b = (@v1 := 2)
analyze update {t} set b = {f}
analyze format=json select * from {t}
analyze select @v1 := 1
explain extended select * from {t}
show profiles
show profile
show explain for 1
set sql_mode = 'oracle'
set max_statement_time = 10
set default_role = none
set gtid_domain_id = 7, server_id = 9
set pseudo_slave_mode = 1
set skip_replication = 1
set character_set_collations = ''
set system_versioning_asof = '2020-01-01'
set check_constraint_checks = 0
set old_mode = ''
set note_verbosity = ''
set sql_if_exists = 1
set tx_isolation = 'serializable', tx_read_only = 1
backup stage start
backup stage end
backup lock t1
backup unlock
lock tables t1 write nowait
lock tables t1 write concurrent
create or replace temporary table tmp1 (a int)
create temporary sequence tmp2
select get_lock('fuzz_1', 0.0)
select @v1 := 5 from {t} rows limit 1
set @@session.rand_seed1 = 1, @@session.rand_seed2 = 2
kill soft query id 1
flush local query cache
"""

ON_MYSQL = rf"""
set resource group {GROUP}
set resource group {GROUP} for {{thread}}
select /*+ resource_group({GROUP}) */ 1
select /*+ set_var(sort_buffer_size = 100000) */ 1
select /*+ max_execution_time(1) */ sleep(0.05)
select /*+ max_execution_time(1) */ count(*) from t1 a, t1 b, t1 c, t1 d, t1 e, t1 f, t1 g, t1 h, t1 i, t1 j
set optimizer_trace = 'enabled=on', end_markers_in_json = on
set session optimizer_trace = 'enabled=on,one_line=on'
set optimizer_trace_offset = -5, optimizer_trace_limit = 5
table t1 limit 1 into @v1, @v2
values row(1, @v1 := 2)
with x as (select 1 as a) update t1 set b = {{f}}
with x as (select 1 as a) update t1, x set t1.b = (@v1 := 'x') where t1.a = x.a
with x as (select 1 as a) delete from t1 where a = {{f}}
lock instance for backup
unlock instance
select * from t1 for share
select * from t1 for update of t1 nowait
set session_track_gtids = own_gtid
set gtid_next = 'automatic'
set transaction_isolation = 'serializable', transaction_read_only = 1
set max_execution_time = 5000
set information_schema_stats_expiry = 0
set default_collation_for_utf8mb4 = utf8mb4_general_ci
set sql_generate_invisible_primary_key = 1
set windowing_use_high_precision = 0
set explain_format = tree
set use_secondary_engine = off
set terminology_use_previous = before_8_0_26
set resultset_metadata = none
set xa_detach_on_prepare = 0
set new = 1
set session debug_set = 1
explain analyze select * from t1
explain format=tree select a from t1
explain into @v1 select * from t1
explain format=json into @v1 select * from t1
set role all except {ROLE}
set role default
select get_dd_column_privileges('a', 'b', 'c')
import table from '/nonexistent.sdi'
select @v1 := json_object('a', 1)
select * from json_table('[1]', '$[*]' columns (a int path '$')) as j
select statement_digest('select 1')
flush local optimizer_costs
"""


def lines(text: str) -> list[str]:
    """The kinds in it."""
    return [line.replace("\\n", "\n") for line in text.splitlines() if line]


# Calls of PyMySQL's, and what is done to the Python object.


def _raise_for_13(text: str) -> int:
    if text == "13":
        raise DataError("the decoder's own")
    return int(text)


def _decode_badly(connection: Any) -> None:
    for kind in (FIELD_TYPE.LONG, FIELD_TYPE.LONGLONG):
        connection.decoders[kind] = _raise_for_13
    connection.query("select 12 union all select 13 union all select 14")


def _read_in_vain(connection: Any) -> None:
    connection._read_timeout = 0.01
    connection.query("select sleep(0.05)")


def _read_next(connection: Any) -> None:
    if connection._result is not None and connection._result.has_next:  # else PyMySQL waits forever
        connection.next_result()


def _set_names(connection: Any, charset: str) -> None:
    getattr(connection, "set_character_set", connection.set_charset)(charset)  # since PyMySQL 1.1


def _run_many(connection: Any) -> None:
    with connection.cursor() as cursor:
        cursor.executemany("insert into ledger (word) values (%s)", [("one",), ("two",)])


def _call(name: str, *args: Any) -> Callable[[Any], object]:
    def call(connection: Any) -> None:
        with connection.cursor() as cursor:
            cursor.callproc(name, args)
            cursor.fetchall()

    return call


def _set(**attributes: Any) -> Callable[[Any], object]:
    return lambda connection: vars(connection).update(attributes)


CALLS: dict[str, Callable[[Any], object]] = {
    "select_db(OTHER)": lambda connection: connection.select_db(OTHER),
    "select_db('mysql')": lambda connection: connection.select_db("mysql"),
    "select_db('nowhere')": lambda connection: connection.select_db("nowhere"),
    "set_character_set('latin1')": lambda connection: _set_names(connection, "latin1"),
    "set_character_set('gbk')": lambda connection: _set_names(connection, "gbk"),
    "set_charset('utf8mb4')": lambda connection: connection.set_charset("utf8mb4"),
    "autocommit(True)": lambda connection: connection.autocommit(True),  # noqa: FBT003
    "autocommit(False)": lambda connection: connection.autocommit(False),  # noqa: FBT003
    "begin()": lambda connection: connection.begin(),
    "commit()": lambda connection: connection.commit(),
    "rollback()": lambda connection: connection.rollback(),
    "ping()": lambda connection: connection.ping(),
    "ping(False)": lambda connection: connection.ping(False),  # noqa: FBT003
    "show_warnings()": lambda connection: connection.show_warnings(),
    "insert_id()": lambda connection: connection.insert_id(),
    "thread_id()": lambda connection: connection.thread_id(),
    "escape()": lambda connection: connection.escape("it's"),
    "next_result()": _read_next,
    "executemany()": _run_many,
    "callproc('p_echo')": _call("p_echo", "x"),
    "callproc('p_var')": _call("p_var"),
    "callproc('p_out')": _call("p_out", "x"),
    "callproc('p_results')": _call("p_results"),
    "callproc('p_shows_and_opens')": _call("p_shows_and_opens"),
    ".mine = 1": _set(mine=1),
    ".cursorclass = DictCursor": _set(cursorclass=DictCursor),
    ".cursorclass = SSCursor": _set(cursorclass=SSCursor),
    ".decoders.clear()": lambda connection: connection.decoders.clear(),
    ".decoders = {}": _set(decoders={}),
    ".use_unicode = False": _set(use_unicode=False),
    ".client_flag": _set(client_flag=0),
}

#: What is so unusual that PoolError, or any other error, is a right answer to what follows.
ODD_CALLS: dict[str, Callable[[Any], object]] = {
    "a decoder that raises": _decode_badly,
    "a read timeout": _read_in_vain,
    "del .encoders[str]": lambda connection: connection.encoders.pop(str),
    "ping(reconnect=True)": lambda connection: connection.ping(reconnect=True),
    "connect()": lambda connection: connection.connect(),
    "kill(thread_id())": lambda connection: connection.kill(connection.thread_id()),
    "_force_close()": lambda connection: connection._force_close(),
    ".init_command": _set(init_command="set @v1 = 'init'"),
    ".sql_mode": _set(sql_mode="ansi"),
    ".autocommit_mode": _set(autocommit_mode=True),
    ".db": _set(db=b"mysql"),
    ".charset": _set(charset="latin1"),
    ".encoding = 'latin1'": _set(encoding="latin1"),
    ".user": _set(user="nobody"),
}


#: How a statement may be run, and how often.
HOWS = {
    "cursor": 10, "query": 4, "dict": 1, "read unbuffered": 2, "half read": 1, "unread": 1, "rows left": 2,
}  # fmt: skip

SECTIONS = {
    "reads": (READS, 5), "suspects": (SUSPECT_READS, 4), "writes": (WRITES, 6), "sets": (SETS, 5),
    "transactions": (TRANSACTIONS, 4), "others": (OTHERS, 6), "own": ("", 4),
}  # fmt: skip


@dataclass(frozen=True)
class Step:
    """One thing that a borrower does: a statement, and how it is run, or a call."""

    how: str
    text: str
    #: The statement without decorations.
    plain: str = ""

    def __str__(self) -> str:
        text = repr(self.text) if len(self.text) < 1000 else f"{self.text[:50]!r} ... {self.text[-200:]!r}"
        return self.text if self.how == "call" else f"{self.how:15} {text}"


class Grammar:
    """Generates random statements. `settings` are the names of the server's variables."""

    def __init__(self, chance: random.Random, settings: list[str], *, on_mariadb: bool) -> None:
        self.chance = chance
        self.settings = settings
        own = ON_MARIADB if on_mariadb else ON_MYSQL
        self.sections = [lines(text or own) for text, _ in SECTIONS.values()]
        self.weights = [weight for _, weight in SECTIONS.values()]
        self.next_id = 1000

    def steps(self) -> list[Step]:
        """Something to do, in a step or in several."""
        chance = self.chance.random()
        if chance < 0.12:
            return [Step("call", self.chance.choice([*CALLS, *CALLS, *CALLS, *ODD_CALLS]))]
        if chance < 0.25:
            return [self.step(self.filled(kind)) for kind in self.chance.choice(lines(SCRIPTS)).split(" => ")]
        [section] = self.chance.choices(self.sections, self.weights)
        return [self.step(self.filled(self.chance.choice(section)))]

    def step(self, plain: str) -> Step:
        """The statement, decorated and run somehow."""
        [how] = self.chance.choices([*HOWS], [*HOWS.values()])
        return Step(how, self.decorated(plain), plain)

    def filled(self, kind: str) -> str:
        """A statement of this kind."""
        return re.sub(r"\{(\w+)\}", lambda found: getattr(self, found[1])(), kind)

    def decorated(self, statement: str) -> str:
        """The statement in other letters, with comments around it, or in a comment that servers execute."""
        chance = self.chance
        if chance.random() < 0.2:
            statement = re.sub(r"(?<![@.`'\"\w])(?:[a-z]+)(?=\s)", lambda word: _upper(word[0]), statement)
        if chance.random() < 0.05:
            return chance.choice(_WRAPPERS).replace("...", statement)
        if chance.random() < 0.3:
            statement = chance.choice(_BEFORE) + statement
        if chance.random() < 0.2:
            statement += chance.choice(_BEHIND)
        return statement

    # Replacements for the names in braces

    def n(self) -> str:
        """A small number."""
        return str(self.chance.randrange(10))

    def read(self) -> str:
        """Any SELECT or SHOW."""
        return self.filled(self.chance.choice(lines(READS)))

    def id(self) -> str:
        """A number that no other row has."""
        self.next_id += 1
        return str(self.next_id)

    def word(self) -> str:
        """A literal."""
        return self.chance.choice(_WORDS)

    def gbk(self) -> str:
        """Two bytes that are one letter in GBK, where the second is a backslash, and a quote."""
        return self.chance.choice(["\udcbf\\", "\udcbf\\'", "\udcbf'", "\udcbf\\\\"])

    def t(self) -> str:
        """A table without triggers."""
        return self.chance.choice(["t1", "t1", "`t1`", "t2", "block_list", "clocks", f"{NAME}.t1"])

    def ledger(self) -> str:
        """The table whose rows are checked."""
        return self.chance.choice(["ledger", f"{NAME}.ledger", f"`{NAME}`.`ledger`"])

    def effect(self) -> str:
        """The effect of code in the server."""
        return self.chance.choice([*EFFECTS])

    def f(self) -> str:
        """A function with an effect."""
        return self.chance.choice(["f_{}()", "`f_{}`()", NAME + ".f_{}()"]).format(self.effect())

    def g(self) -> str:
        """A table with triggers that have an effect."""
        return f"g_{self.effect()}"

    def w(self) -> str:
        """A view with an effect."""
        return f"w_{self.effect()}"

    def p(self) -> str:
        """A procedure with an effect."""
        return f"p_{self.effect()}"

    def opening(self) -> str:
        """A procedure that leaves a transaction open."""
        return self.chance.choice(OPENING)

    def lock(self) -> str:
        """The name of a lock."""
        return self.chance.choice([f"'{lock}'" for lock in LOCKS] + ["'FUZZ_1'", "concat('fuzz', '_2')"])

    def getlock(self) -> str:
        """The function that takes a lock."""
        return self.chance.choice(["get_lock", "get_lock", "GET_LOCK", "Get_Lock", "`get_lock`", '"get_lock"'])

    def charset(self) -> str:
        """A character set."""
        return self.chance.choice(["utf8mb4", "latin1", "gbk", "utf8mb3", "binary", "ascii", "big5", "sjis"])

    def seeds(self) -> str:
        """The seeds of RAND()."""
        return SEEDS

    def role(self) -> str:
        """A role."""
        return self.chance.choice([ROLE, DEFAULT_ROLE])

    def db(self) -> str:
        """The schema."""
        return f"`{NAME}`"

    def other(self) -> str:
        """Another schema."""
        return OTHER

    def errno(self) -> str:
        """The number of an error that the pool treats specially."""
        return str(self.chance.choice([1047, 1053, 1062, 1205, 1213, 1290, 1317, 1927, 2006, 2013, 3024, 4031]))

    def thread(self) -> str:
        """The id of a server thread that does not exist."""
        return "999999"

    def setting(self) -> str:
        """Any variable of the server."""
        return self.chance.choice(self.settings)

    def value(self) -> str:
        """A value for it."""
        return self.chance.choice(["0", "1", "2", "'on'", "'off'", "4096", "100", "''", "default", "'1'"])


_WORDS = [
    "'x'",
    '"y"',
    "'a@b.c'",
    "'O''Neil'",
    "'O\\'Neil <o@neil.ie>'",
    '\'{"a": "b@c", "d": [1; 2]}\'',
    "'\\\\'",
    "''",
    "'use the lock'",
    "'é@ü'",
    "'语言@'",
    "'/* @v1 := 1 */'",
    "'-- '",
    "'# '",
    "'set role'",
    "_latin1'x'",
    "x'41'",
    "n'z'",
    "'" + "long " * 30 + "'",
]
_BEFORE = [
    " ",
    "\n\t",
    "/* app */ ",
    "/* it's */ ",
    "/**/",
    "-- name: x\n",
    "# it's\n",
    "/* é ' */",
    "/*!50000 */",
    "/*! */ ",
    "/* /* */ ",
    "/* select 1 */",
    "--\n",
    "\f",
    "/*" + "x" * 17_000 + "*/",
]
_BEHIND = [";", " ;", "; ", ";\n", " -- x", " # '", " /* '@' */", " /*!50000 */", "\n", ";;", " /* open", "\x00"]
_WRAPPERS = [
    "/*!50000 ...*/",
    "/*!50000...*/",
    "/*!...*/",
    "/*! ... */",
    "/*!50000 ... */;",
    "/*M! ...*/",
    "/*!99999 ... */",
]
_KEYWORDS = {
    "select", "insert", "into", "update", "delete", "replace", "set", "call", "use", "do", "show", "with", "begin",
    "commit", "rollback", "names", "role", "session", "start", "transaction", "lock", "tables", "temporary", "table",
    "create", "from", "where", "handler", "prepare", "execute", "xa", "flush",
}  # fmt: skip


def _upper(word: str) -> str:
    return word.upper() if word in _KEYWORDS else word


# The pools' arguments, besides the server's address

VARIATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "charset gbk": {"charset": "gbk"},
    "charset latin1": {"charset": "latin1"},
    "a variable in init_command": {"init_command": "set @boot = 'yes'"},
    "a setting in init_command": {"init_command": "set sort_buffer_size = 131072"},
    "ANSI_QUOTES": {"sql_mode": "ANSI_QUOTES"},
    "traditional": {"sql_mode": "TRADITIONAL"},
    "MULTI_STATEMENTS": {"client_flag": CLIENT.MULTI_STATEMENTS},
    "MULTI_STATEMENTS and FOUND_ROWS": {"client_flag": CLIENT.MULTI_STATEMENTS | CLIENT.FOUND_ROWS},
    "IGNORE_SPACE": {"client_flag": CLIENT.IGNORE_SPACE},
    "INTERACTIVE": {"client_flag": CLIENT.INTERACTIVE},
    "no database": {"database": None},
    "a default role": {"user": f"{NAME}_default"},
    "no roles": {"user": f"{NAME}_plain"},
    "local_infile": {"local_infile": True},
    "DictCursor": {"cursorclass": DictCursor},
    "SSCursor": {"cursorclass": SSCursor},
}
