-- What the role that notebooks use should have, and what it should not. In braces: its password.
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
