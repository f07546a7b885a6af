-- The tables of the workshop, as Aurora DSQL accepts them: a statement each, first the column that
-- counts the rows.

CREATE TABLE IF NOT EXISTS planet (
    id   INTEGER PRIMARY KEY,
    name VARCHAR(30) NOT NULL
);

CREATE TABLE IF NOT EXISTS users1 (
    id         INTEGER PRIMARY KEY,
    name       VARCHAR(100) NOT NULL,
    email      VARCHAR(150) NOT NULL UNIQUE,
    age        INTEGER,
    department VARCHAR(50),
    salary     DECIMAL(10,2),
    hire_date  DATE,
    is_active  BOOLEAN NOT NULL
);

CREATE TABLE IF NOT EXISTS users (
    user_id    INTEGER PRIMARY KEY,
    name       VARCHAR(100) NOT NULL,
    email      VARCHAR(150) NOT NULL,
    department VARCHAR(50) NOT NULL,
    role       VARCHAR(50) NOT NULL,
    last_login TIMESTAMPTZ
);

-- The key begins with the user: one user's orders lie together, and no second index is needed to
-- find them. On DSQL, where a table is stored in key order, that is one short range read.
CREATE TABLE IF NOT EXISTS orders (
    order_id     BIGINT NOT NULL,
    user_id      INTEGER NOT NULL,
    order_date   DATE NOT NULL,
    order_amount DECIMAL(10,2) NOT NULL,
    order_type   VARCHAR(20) NOT NULL,
    PRIMARY KEY (user_id, order_id)
);

CREATE TABLE IF NOT EXISTS type (
    id   INTEGER PRIMARY KEY,
    name VARCHAR(30) NOT NULL
);

CREATE TABLE IF NOT EXISTS transactions (
    id       BIGINT PRIMARY KEY,
    type     INTEGER NOT NULL,
    date     DATE NOT NULL,
    quantity INTEGER NOT NULL,
    price    DECIMAL(10,2) NOT NULL
);

-- The ids of a run lie together, so that its rows are found and deleted by one range of keys. Each
-- of its workers has a range of its own within: on DSQL, writers at one end of one range get hot.
CREATE TABLE IF NOT EXISTS business_events (
    id           VARCHAR(100) PRIMARY KEY,
    event_name   VARCHAR(60) NOT NULL,
    event_type   VARCHAR(60) NOT NULL,
    created_date TIMESTAMPTZ NOT NULL,
    saved_date   TIMESTAMPTZ NOT NULL,
    event_data   JSONB NOT NULL
);

-- What has been loaded, from which recipe, whether to the end, and the sum over its rows; and which
-- load is under way, until when that counts.
CREATE TABLE IF NOT EXISTS workshop_loaded (
    table_name    VARCHAR(60) PRIMARY KEY,
    recipe        VARCHAR(200) NOT NULL,
    row_count     BIGINT NOT NULL,
    complete      BOOLEAN NOT NULL,
    fingerprint   BIGINT,
    loader        VARCHAR(60),
    claimed_until TIMESTAMPTZ
);
