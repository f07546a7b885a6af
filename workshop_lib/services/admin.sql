-- What the role that notebooks use should have, and what it should not. In braces: its password.
-- First of all: an open transaction of admin's that changed a role would be waited for without end.
SELECT pg_terminate_backend(a.pid) FROM pg_locks l JOIN pg_stat_activity a USING (pid)
 WHERE a.usename = 'admin' AND l.mode <> 'AccessShareLock' AND l.relation IN (
    'pg_authid'::regclass, 'pg_auth_members'::regclass, 'pg_db_role_setting'::regclass,
    'pg_database'::regclass, 'pg_namespace'::regclass);
DO $$ BEGIN CREATE ROLE admin; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
ALTER ROLE admin LOGIN CREATEROLE NOSUPERUSER NOCREATEDB NOREPLICATION NOBYPASSRLS
    CONNECTION LIMIT -1 VALID UNTIL 'infinity' PASSWORD {};
ALTER ROLE admin RESET ALL;
ALTER ROLE admin IN DATABASE postgres RESET ALL;
ALTER ROLE admin SET workshop.dsql_rules = 'on';
GRANT CREATE, CONNECT ON DATABASE postgres TO admin;
GRANT ALL ON SCHEMA public TO admin;
REVOKE pg_monitor FROM admin;
-- Through a view of it, a client of the local DSQL could set what it may not SET.
REVOKE UPDATE ON pg_catalog.pg_settings FROM PUBLIC;
