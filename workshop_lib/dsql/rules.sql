-- What Aurora DSQL refuses, refused by a plain PostgreSQL 16 for any client of the server.
--
-- Run by a superuser; again changes nothing. The rules hold where the setting workshop.dsql_rules is
-- on: for a role (ALTER ROLE … SET), a database, or a session. docs/dsql-rules.md lists them all.
--
-- These functions run with the rights of the role that changes or defines a table, a superuser's
-- too. So none may find a function or an operator that another role has put on the search path: a body in
-- SQL is bound to what it names when it is created (RETURN, BEGIN ATOMIC), a body in PL/pgSQL is
-- looked up when it runs, on the search path of its SET clause.

-- First of all, so that what follows does not set off the rules of an earlier version.
DROP EVENT TRIGGER IF EXISTS dsql_rules_before;
DROP EVENT TRIGGER IF EXISTS dsql_rules_after;

CREATE SCHEMA IF NOT EXISTS dsql_rules;
CREATE SCHEMA IF NOT EXISTS sys;
GRANT USAGE ON SCHEMA dsql_rules, sys TO PUBLIC;


-- ---------------------------------------------------------------- on, off, and what a transaction did

CREATE OR REPLACE FUNCTION dsql_rules.active() RETURNS boolean LANGUAGE sql STABLE
    RETURN coalesce(current_setting('workshop.dsql_rules', true), '') = 'on';

-- What this transaction has done so far: a number that goes when the transaction ends, and goes back
-- when a savepoint is rolled back.
CREATE OR REPLACE FUNCTION dsql_rules.noted(what text) RETURNS bigint LANGUAGE sql STABLE
    RETURN coalesce(nullif(current_setting('dsql_rules.' || what, true), ''), '0')::bigint;

CREATE OR REPLACE FUNCTION dsql_rules.note(what text, value bigint) RETURNS void LANGUAGE sql
BEGIN ATOMIC
    SELECT set_config('dsql_rules.' || what, value::text, true);
END;

-- A limit that a test may lower.
CREATE OR REPLACE FUNCTION dsql_rules.most(what text, usual bigint) RETURNS bigint
LANGUAGE sql STABLE
    RETURN coalesce(nullif(current_setting('workshop.most_' || what, true), '')::bigint, usual);

CREATE OR REPLACE FUNCTION dsql_rules.refuse(code text, message text) RETURNS text
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = code, MESSAGE = message;
END
$$;


-- ---------------------------------------------------------------- errors that appear at COMMIT

-- A row here is a transaction that will fail when it commits: the trigger is deferred until then.
CREATE UNLOGGED TABLE IF NOT EXISTS dsql_rules.doomed (code text, message text);
GRANT INSERT ON dsql_rules.doomed TO PUBLIC;

CREATE OR REPLACE FUNCTION dsql_rules.fail() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = NEW.code, MESSAGE = NEW.message;
END
$$;

CREATE OR REPLACE FUNCTION dsql_rules.doom(code text, message text) RETURNS void LANGUAGE sql
BEGIN ATOMIC
    INSERT INTO dsql_rules.doomed VALUES (code, message);
END;

DROP TRIGGER IF EXISTS at_commit ON dsql_rules.doomed;
CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON dsql_rules.doomed
    DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION dsql_rules.fail();


-- ---------------------------------------------------------------- changing rows

-- What a row weighs: its values, as they are before PostgreSQL compresses them.
CREATE OR REPLACE FUNCTION dsql_rules.check_size(target oid, row_values jsonb) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    field record;
    size bigint;
    total bigint := 0;
BEGIN
    FOR field IN
        SELECT format_type(a.atttypid, NULL) AS kind, octet_length(v.value) AS size
          FROM jsonb_each_text(row_values) v
          JOIN pg_attribute a ON a.attrelid = target AND a.attname = v.key
    LOOP
        size := CASE field.kind WHEN 'bytea' THEN field.size / 2 - 1 ELSE field.size END;
        total := total + coalesce(size, 0);
        IF size > 1024 * 1024 THEN
            PERFORM dsql_rules.refuse('54000', format(
                'datatype limit greater than 1048576 bytes not supported for %s', field.kind));
        END IF;
    END LOOP;
    IF total > 2 * 1024 * 1024 THEN
        PERFORM dsql_rules.refuse('54000', 'maximum row size exceeded');
    END IF;
END
$$;

-- SQL that compares the primary keys of two rows; NULL if there is none.
CREATE OR REPLACE FUNCTION dsql_rules.same_key(target oid, one text, other text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT string_agg(format('%s.%I = %s.%2$I', one, a.attname, other), ' AND ')
      FROM pg_index i
      JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey::int2[])
     WHERE i.indrelid = target AND i.indisprimary
$$;

CREATE OR REPLACE FUNCTION dsql_rules.after_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    row_count bigint;
    byte_count bigint;
    age interval := clock_timestamp() - transaction_timestamp();
    logging boolean := dsql_rules.noted('log') > 0;
    before json;
    after json;
    same text;
    matches bigint;
BEGIN
    IF NOT dsql_rules.active() THEN
        RETURN NULL;
    END IF;
    IF dsql_rules.noted('ddl') > 0 THEN
        PERFORM dsql_rules.refuse(
            '0A000', 'ddl and dml are not supported in the same transaction');
    END IF;
    IF TG_OP <> 'INSERT' THEN
        SELECT count(*), coalesce(sum(pg_column_size(r.*)), 0) INTO row_count, byte_count
          FROM old_rows r;
        IF logging THEN
            before := (SELECT json_agg(r.*) FROM old_rows r);
        END IF;
    END IF;
    IF TG_OP <> 'DELETE' THEN
        SELECT count(*), coalesce(sum(pg_column_size(r.*)), 0) INTO row_count, byte_count
          FROM new_rows r;
        IF byte_count > 1024 * 1024 THEN
            PERFORM dsql_rules.check_size(TG_RELID, to_jsonb(r.*))
               FROM new_rows r WHERE pg_column_size(r.*) > 1024 * 1024;
        END IF;
        IF logging THEN
            after := (SELECT json_agg(r.*) FROM new_rows r);
            same := dsql_rules.same_key(TG_RELID, 't', 'n');
            IF same IS NOT NULL THEN
                -- The unique index knows that a row was deleted after the snapshot, which has it.
                -- Not a join: there the planner trusts the index that there is one row with a key.
                EXECUTE format('SELECT sum((SELECT count(*) FROM %s t WHERE %s)) FROM new_rows n',
                    TG_RELID::regclass, same) INTO matches;
                IF matches > row_count THEN
                    PERFORM dsql_rules.refuse('23505',
                        'duplicate key value violates unique constraint');
                END IF;
            END IF;
        END IF;
    END IF;
    IF logging AND row_count > 0 THEN
        RAISE NOTICE USING ERRCODE = 'DSQLW', MESSAGE = TG_RELID::regclass,
            DETAIL = coalesce(before::text, ''), HINT = coalesce(after::text, '');
    END IF;
    row_count := row_count + dsql_rules.noted('rows');
    byte_count := byte_count + dsql_rules.noted('bytes');
    IF row_count > dsql_rules.most('rows', 3000) THEN
        PERFORM dsql_rules.refuse('54000', 'transaction row limit exceeded');
    END IF;
    IF byte_count > dsql_rules.most('bytes', 10 * 1024 * 1024) THEN
        PERFORM dsql_rules.doom('54000', 'transaction size limit 10mb exceeded');
    END IF;
    IF age > make_interval(secs => dsql_rules.most('seconds', 300)) THEN
        PERFORM dsql_rules.doom('54000', 'transaction age limit of 300s exceeded');
    END IF;
    PERFORM dsql_rules.note('rows', row_count),
            dsql_rules.note('bytes', byte_count),
            dsql_rules.note('dml', 1);
    RETURN NULL;
END
$$;

CREATE OR REPLACE FUNCTION dsql_rules.before_truncate() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF dsql_rules.active() THEN
        PERFORM dsql_rules.refuse('0A000', 'unsupported statement: Truncate');
    END IF;
    RETURN NULL;
END
$$;

-- Triggers for each kind of change: only these see the changed rows, and only by statement.
CREATE OR REPLACE FUNCTION dsql_rules.attach(target regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF 5 = (SELECT count(*) + count(tgoldtable) FILTER (WHERE tgnewtable IS NOT NULL)
              FROM pg_trigger WHERE tgrelid = target AND tgfoid IN (
            'dsql_rules.after_change'::regproc, 'dsql_rules.before_truncate'::regproc)) THEN
        RETURN;
    END IF;
    PERFORM dsql_rules.note('inner', 1);
    EXECUTE format('CREATE OR REPLACE TRIGGER dsql_rules_insert AFTER INSERT ON %s '
        'REFERENCING NEW TABLE AS new_rows '
        'FOR EACH STATEMENT EXECUTE FUNCTION dsql_rules.after_change()', target);
    EXECUTE format('CREATE OR REPLACE TRIGGER dsql_rules_update AFTER UPDATE ON %s '
        'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows '
        'FOR EACH STATEMENT EXECUTE FUNCTION dsql_rules.after_change()', target);
    EXECUTE format('CREATE OR REPLACE TRIGGER dsql_rules_delete AFTER DELETE ON %s '
        'REFERENCING OLD TABLE AS old_rows '
        'FOR EACH STATEMENT EXECUTE FUNCTION dsql_rules.after_change()', target);
    EXECUTE format('CREATE OR REPLACE TRIGGER dsql_rules_truncate BEFORE TRUNCATE ON %s '
        'FOR EACH STATEMENT EXECUTE FUNCTION dsql_rules.before_truncate()', target);
    PERFORM dsql_rules.note('inner', 0);
END
$$;


-- ---------------------------------------------------------------- defining tables

CREATE OR REPLACE FUNCTION dsql_rules.before_ddl() RETURNS event_trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    problem text := CASE TG_TAG
        WHEN 'CREATE TABLE AS' THEN 'unsupported statement: CreateTableAs'
        WHEN 'SELECT INTO' THEN 'unsupported statement: CreateTableAs'
        WHEN 'CREATE MATERIALIZED VIEW' THEN 'unsupported statement: CreateTableAs'
        WHEN 'CREATE EXTENSION' THEN 'unsupported statement: CreateExtension'
        WHEN 'CREATE TRIGGER' THEN 'CREATE TRIGGER not supported'
        WHEN 'CREATE TYPE' THEN 'CREATE TYPE not supported'
        WHEN 'CREATE FOREIGN TABLE' THEN 'unsupported statement: CreateForeignTable'
        WHEN 'CREATE INDEX' THEN 'unsupported mode. please use CREATE INDEX ASYNC.'
    END;
BEGIN
    IF NOT dsql_rules.active() OR dsql_rules.noted('inner') > 0 THEN
        RETURN;
    END IF;
    IF dsql_rules.noted('ddl') > 0 THEN
        PERFORM dsql_rules.refuse(
            '0A000', 'multiple ddl statements not supported in a transaction');
    END IF;
    IF dsql_rules.noted('dml') > 0 THEN
        PERFORM dsql_rules.refuse(
            '0A000', 'ddl and dml are not supported in the same transaction');
    END IF;
    IF problem IS NOT NULL AND NOT (TG_TAG = 'CREATE INDEX' AND dsql_rules.noted('async') > 0) THEN
        PERFORM dsql_rules.refuse('0A000', problem);
    END IF;
    PERFORM dsql_rules.note('ddl', 1);
    IF current_setting('lock_timeout')::interval BETWEEN '1 ms' AND '10 s' THEN
        -- A row is not waited for, as on the service; a table that others read, for some time.
        PERFORM set_config('lock_timeout', '10s', true);
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION dsql_rules.check_table(target oid) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    kind "char" := (SELECT relpersistence FROM pg_class WHERE oid = target);
    counter record;
    culprit name;
BEGIN
    IF kind = 't' THEN
        PERFORM dsql_rules.refuse(
            '0A000', 'TEMPORARY or TEMP table not supported for CREATE TABLE');
    ELSIF kind = 'u' THEN
        PERFORM dsql_rules.refuse('0A000', 'UNLOGGED table not supported for CREATE TABLE');
    END IF;
    SELECT a.attname INTO culprit FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
     WHERE a.attrelid = target AND a.attnum > 0 AND t.typcategory = 'A' LIMIT 1;
    IF culprit IS NOT NULL THEN
        PERFORM dsql_rules.refuse(
            '0A000', format('column "%s": array types are not supported for columns', culprit));
    END IF;
    -- The sequences that belong to columns of the table: of serial columns and of identity columns.
    FOR counter IN
        SELECT a.attidentity, q.seqtypid, q.seqcache
          FROM pg_depend d
          JOIN pg_sequence q ON q.seqrelid = d.objid
          JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
         WHERE d.classid = 'pg_class'::regclass AND d.refobjid = target AND d.deptype IN ('a', 'i')
    LOOP
        IF counter.attidentity = '' THEN
            PERFORM dsql_rules.refuse('42704', format('type "%s" does not exist',
                CASE counter.seqtypid WHEN 'int8'::regtype THEN 'bigserial'
                    WHEN 'int2'::regtype THEN 'smallserial' ELSE 'serial' END));
        END IF;
        PERFORM dsql_rules.check_sequence(counter.seqtypid, counter.seqcache);
    END LOOP;
END
$$;

CREATE OR REPLACE FUNCTION dsql_rules.check_sequence(kind oid, cached bigint) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF kind <> 'int8'::regtype THEN
        PERFORM dsql_rules.refuse('22023', 'sequence type must be bigint');
    ELSIF cached <> 1 AND cached < 65536 THEN
        PERFORM dsql_rules.refuse('22023', format(
            'CACHE (%s) must be greater than or equal to 65536 or equal to 1', cached));
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION dsql_rules.after_ddl() RETURNS event_trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    made record;
    spoken name;
BEGIN
    IF NOT dsql_rules.active() OR dsql_rules.noted('inner') > 0 THEN
        RETURN;
    END IF;
    FOR made IN SELECT * FROM pg_event_trigger_ddl_commands() LOOP
        IF made.object_type = 'table' AND made.command_tag IN ('CREATE TABLE', 'ALTER TABLE') THEN
            PERFORM dsql_rules.check_table(made.objid);
            IF made.command_tag = 'CREATE TABLE' THEN
                PERFORM dsql_rules.attach(made.objid::regclass);
            END IF;
        ELSIF made.command_tag = 'ALTER SEQUENCE' OR made.command_tag = 'CREATE SEQUENCE' AND NOT
            EXISTS (SELECT FROM pg_depend WHERE objid = made.objid AND deptype IN ('a', 'i')) THEN
            PERFORM dsql_rules.check_sequence(seqtypid, seqcache)
               FROM pg_sequence WHERE seqrelid = made.objid;
        ELSIF made.command_tag = 'CREATE SCHEMA' THEN
            -- Only the front sets this limit: the workshop's runs make a schema for each notebook.
            IF dsql_rules.most('schemas', 1000000) < (
                SELECT count(*) FROM pg_namespace WHERE nspname !~ '^pg_'
                    AND nspname NOT IN ('information_schema', 'dsql_rules', 'sys')) THEN
                PERFORM dsql_rules.refuse('54000', 'more than 10 schemas not allowed');
            END IF;
        ELSIF made.command_tag = 'CREATE INDEX' THEN
            IF 24 < (SELECT count(*) FROM pg_index i JOIN pg_index same USING (indrelid)
                      WHERE same.indexrelid = made.objid) THEN
                PERFORM dsql_rules.refuse('54000', 'more than 24 indexes per table not allowed');
            END IF;
            PERFORM set_config('dsql_rules.index', made.object_identity, true);
        ELSIF made.command_tag IN ('CREATE FUNCTION', 'CREATE PROCEDURE') THEN
            SELECT l.lanname INTO spoken FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
             WHERE p.oid = made.objid;
            IF spoken <> 'sql' THEN
                PERFORM dsql_rules.refuse('0A000',
                    format('%s with language %s not supported', made.command_tag, spoken));
            END IF;
        END IF;
    END LOOP;
END
$$;

CREATE EVENT TRIGGER dsql_rules_before ON ddl_command_start
    EXECUTE FUNCTION dsql_rules.before_ddl();
CREATE EVENT TRIGGER dsql_rules_after ON ddl_command_end
    EXECUTE FUNCTION dsql_rules.after_ddl();


-- ---------------------------------------------------------------- optimistic commit
--
-- What the front (transactions.py) uses. A transaction whose changes it may have to take back and
-- make again notes `log`: the trigger above then tells it what each statement changed, as the rows
-- before and after it.

-- Make one statement's changes again, row by row as they were: no value is drawn a second time.
CREATE OR REPLACE FUNCTION dsql_rules.replay(
    target regclass, before text, after text, in_copy boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    noted bigint := dsql_rules.noted('log');
    old_rows json := nullif(before, '');
    new_rows json := nullif(after, '');
    names text;
    assignments text;
    same text;
    done bigint;
BEGIN
    IF in_copy THEN
        target := format('pg_temp.%I', (SELECT relname FROM pg_class WHERE oid = target));
    END IF;
    PERFORM dsql_rules.note('log', 0);
    SELECT string_agg(format('%I', attname), ', '),
           string_agg(format('%I = n.%1$I', attname), ', ') FILTER (WHERE attidentity <> 'a'),
           string_agg(format('t.%I IS NOT DISTINCT FROM o.%1$I', attname), ' AND ')
      INTO names, assignments, same
      FROM pg_attribute
     WHERE attrelid = target AND attnum > 0 AND NOT attisdropped AND attgenerated = '';
    same := coalesce(dsql_rules.same_key(target, 't', 'o'), same);
    IF old_rows IS NULL THEN
        EXECUTE format('INSERT INTO %s (%s) OVERRIDING SYSTEM VALUE '
            'SELECT %2$s FROM json_populate_recordset(NULL::%1$s, $1)', target, names)
          USING new_rows;
    ELSE
        IF new_rows IS NULL THEN
            EXECUTE format('DELETE FROM %s t USING json_populate_recordset(NULL::%1$s, $1) o '
                'WHERE %s', target, same) USING old_rows;
        ELSE
            EXECUTE format('UPDATE %s t SET %s FROM ROWS FROM '
                '(json_array_elements($1), json_array_elements($2)) AS p (was, is_now), '
                'json_populate_record(NULL::%1$s, p.was) o, '
                'json_populate_record(NULL::%1$s, p.is_now) n '
                'WHERE %3$s', target, assignments, same) USING old_rows, new_rows;
        END IF;
        GET DIAGNOSTICS done = ROW_COUNT;
        IF done <> json_array_length(old_rows) THEN
            PERFORM dsql_rules.refuse('40001', 'the rows are not what they were');
        END IF;
    END IF;
    PERFORM dsql_rules.note('log', noted);
END
$$;

-- Rows that this transaction has locked become rows that it has changed, to what they are: locking
-- takes part in conflicts, and PostgreSQL forgets its locks at COMMIT.
CREATE OR REPLACE FUNCTION dsql_rules.touch(target regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    col name := (SELECT attname FROM pg_attribute
                  WHERE attrelid = target AND attnum > 0 AND NOT attisdropped
                    AND attgenerated = '' AND attidentity <> 'a' LIMIT 1);
BEGIN
    IF col IS NOT NULL AND 'r' = (SELECT relkind FROM pg_class WHERE oid = target) THEN
        EXECUTE format('UPDATE %s SET %I = %2$I WHERE xmax = ANY (ARRAY('
            'SELECT transactionid FROM pg_locks '
            'WHERE pid = pg_backend_pid() AND locktype = ''transactionid''))', target, col);
    END IF;
END
$$;

-- A copy of a table as this transaction's snapshot has it, which is gone at its end: a transaction
-- that has lost goes on in copies. Its name comes before the table's own, if that is visible by it.
CREATE OR REPLACE FUNCTION dsql_rules.copy_table(target regclass, visible boolean) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    called name;
    names text;
    counter record;
BEGIN
    SELECT c.relname INTO called
      FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
     WHERE c.oid = target AND c.relkind = 'r' AND c.relpersistence = 'p'
       AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'sys', 'dsql_rules');
    IF called IS NULL THEN
        RETURN;
    END IF;
    IF dsql_rules.noted('copy_' || target::oid) > 0 THEN
        RETURN;
    END IF;
    IF NOT visible THEN
        PERFORM dsql_rules.refuse('40001', 'the copy would come before another table of its name');
    END IF;
    SELECT string_agg(format('%I', attname), ', ') INTO names FROM pg_attribute
     WHERE attrelid = target AND attnum > 0 AND NOT attisdropped AND attgenerated = '';
    PERFORM dsql_rules.note('inner', 1);
    EXECUTE format('CREATE TEMP TABLE %I (LIKE %s INCLUDING DEFAULTS INCLUDING CONSTRAINTS '
        'INCLUDING INDEXES INCLUDING GENERATED) ON COMMIT DROP', called, target);
    EXECUTE format('INSERT INTO pg_temp.%I (%s) SELECT %2$s FROM %s', called, names, target);
    FOR counter IN SELECT attname FROM pg_attribute WHERE attrelid = target AND attidentity <> ''
    LOOP
        EXECUTE format('ALTER TABLE pg_temp.%I ALTER %I SET DEFAULT nextval(%L)', called,
            counter.attname, pg_get_serial_sequence(target::text, counter.attname));
    END LOOP;
    PERFORM dsql_rules.note('inner', 0), dsql_rules.note('copy_' || target::oid, 1);
END
$$;


-- ---------------------------------------------------------------- CREATE INDEX ASYNC

CREATE TABLE IF NOT EXISTS sys.jobs (
    job_id text PRIMARY KEY,
    status text NOT NULL,
    details text,
    job_type text NOT NULL,
    class_id oid,
    object_id oid,
    object_name text,
    start_time timestamptz NOT NULL,
    update_time timestamptz
);
ALTER TABLE sys.jobs ADD COLUMN IF NOT EXISTS class_id oid, ADD COLUMN IF NOT EXISTS object_id oid,
    ALTER object_name DROP NOT NULL, ALTER update_time DROP NOT NULL;  -- of an earlier version
GRANT SELECT ON sys.jobs TO PUBLIC;

-- The job's name as the service writes it: 128 bits in base32.
CREATE OR REPLACE FUNCTION dsql_rules.job_id() RETURNS text LANGUAGE sql
BEGIN ATOMIC
    SELECT string_agg(substr('abcdefghijklmnopqrstuvwxyz234567', 1 + floor(random() * 32)::int, 1),
                      '')
      FROM generate_series(1, 26);
END;

-- With its owner's rights: nobody else may write into sys.jobs.
CREATE OR REPLACE FUNCTION dsql_rules.note_job(kind text, made text) RETURNS text
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO sys.jobs
    VALUES (dsql_rules.job_id(), 'completed', NULL, kind, 'pg_class'::regclass, to_regclass(made),
            nullif(made, ''), transaction_timestamp(), clock_timestamp())
    RETURNING job_id
$$;

-- What runs in the place of CREATE INDEX ASYNC and ALTER TABLE ASYNC, which PostgreSQL cannot parse.
-- It is done at once: the job is never seen at work. The statement is the caller's and needs the
-- caller's search path: what is beside it names schemas.
CREATE OR REPLACE FUNCTION dsql_rules.run_job(kind text, statement text) RETURNS text
LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_catalog.set_config('dsql_rules.index', '', true);
    PERFORM dsql_rules.note('async', 1);
    EXECUTE statement;
    PERFORM dsql_rules.note('async', 0);
    RETURN dsql_rules.note_job(kind, pg_catalog.current_setting('dsql_rules.index', true));
END
$$;

-- The first column of the primary key that is among these names.
CREATE OR REPLACE FUNCTION dsql_rules.key_column(target oid, names jsonb) RETURNS name
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT a.attname FROM pg_index i
      JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY (i.indkey::int2[])
     WHERE i.indrelid = target AND i.indisprimary AND names ? a.attname::text
     ORDER BY a.attnum LIMIT 1
$$;

-- What runs in the place of ALTER TABLE … DROP COLUMN, with the caller's search path.
CREATE OR REPLACE PROCEDURE dsql_rules.drop_columns(
    table_name text, column_names jsonb, statement text)
LANGUAGE plpgsql AS $$
DECLARE
    culprit name := dsql_rules.key_column(pg_catalog.to_regclass(table_name), column_names);
BEGIN
    IF culprit IS NOT NULL THEN
        PERFORM dsql_rules.refuse(
            '0A000', pg_catalog.concat('cannot drop primary key column ', culprit));
    END IF;
    EXECUTE statement;
END
$$;

CREATE OR REPLACE PROCEDURE sys.wait_for_job(wanted text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF wanted !~ '^[a-z2-7]{26}$' THEN
        RAISE EXCEPTION USING ERRCODE = '22P02', MESSAGE = 'Unable to convert text to UUID';
    END IF;
    IF NOT EXISTS (SELECT FROM sys.jobs WHERE job_id = wanted) THEN
        RAISE EXCEPTION USING ERRCODE = '22023', MESSAGE = format('job %s does not exist', wanted);
    END IF;
END
$$;

CREATE OR REPLACE FUNCTION sys.current_session_id() RETURNS text LANGUAGE sql STABLE
    RETURN to_hex(pg_backend_pid()) || '-' || (
        SELECT extract(epoch FROM backend_start)::text FROM pg_stat_get_activity(pg_backend_pid()));


-- ---------------------------------------------------------------- tables of an earlier time

DO $$
DECLARE
    found regclass;
BEGIN
    PERFORM set_config('lock_timeout', '100ms', true);  -- of each table
    FOR found IN
        SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
         WHERE c.relkind = 'r' AND c.relpersistence = 'p'
           AND n.nspname !~ '^(pg_|information_schema$|dsql_rules$|sys$)'
    LOOP
        BEGIN
            PERFORM dsql_rules.attach(found);
        EXCEPTION WHEN OTHERS THEN  -- of one table; all others should have the rules
            RAISE WARNING 'no rules on %: %', found, SQLERRM;
        END;
    END LOOP;
END
$$;
