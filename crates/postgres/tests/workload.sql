-- Something of everything that writes WAL. Run on a database of its own, outside a transaction.
CREATE TABLE orders (id bigserial PRIMARY KEY, customer int NOT NULL, note text, tags int[], place point, span int4range);
CREATE INDEX orders_hash ON orders USING hash (customer);
CREATE INDEX orders_gin ON orders USING gin (tags);
CREATE INDEX orders_gist ON orders USING gist (place);
CREATE INDEX orders_gist_range ON orders USING gist (span);
CREATE INDEX orders_spgist ON orders USING spgist (place);
CREATE INDEX orders_spgist_text ON orders USING spgist (note);
CREATE INDEX orders_brin ON orders USING brin (id) WITH (pages_per_range = 4);
INSERT INTO orders (customer, note, tags, place, span)
    SELECT i % 97, repeat(md5(i::text), 1 + i % 3), ARRAY[i % 7, i % 11, i], point(i % 100, i / 100), int4range(i, i + 5)
    FROM generate_series(1, 4000) i;
INSERT INTO orders (customer, note) SELECT i, (SELECT string_agg(md5((i * 1000 + j)::text), '') FROM generate_series(1, 400) j) FROM generate_series(1, 20) i;
UPDATE orders SET note = note || 'x' WHERE id % 5 = 0;
UPDATE orders SET customer = customer + 1, tags = tags || 5, place = point(id, id) WHERE id % 9 = 0;
DELETE FROM orders WHERE id % 3 = 0;
VACUUM orders;
CHECKPOINT;
DELETE FROM orders WHERE id > 3000;
VACUUM (FREEZE, ANALYZE) orders;
SELECT brin_summarize_new_values('orders_brin');
SELECT gin_clean_pending_list('orders_gin');
INSERT INTO orders (customer) SELECT i FROM generate_series(1, 300) i ON CONFLICT DO NOTHING;

CREATE TABLE copied (n int, t text);
COPY copied (n) FROM PROGRAM 'seq 1 20000';
BEGIN;
TRUNCATE copied;
COPY copied (n) FROM PROGRAM 'seq 1 500';
COMMIT;
CREATE UNLOGGED TABLE unlogged (n int PRIMARY KEY);
INSERT INTO unlogged SELECT generate_series(1, 100);
CREATE TEMP TABLE temporary (n int);
INSERT INTO temporary SELECT generate_series(1, 100);
CREATE MATERIALIZED VIEW seen AS SELECT customer, count(*) FROM orders GROUP BY 1;
REFRESH MATERIALIZED VIEW seen;

CREATE TABLE parted (n int, t text) PARTITION BY RANGE (n);
CREATE TABLE parted_1 PARTITION OF parted FOR VALUES FROM (0) TO (100);
CREATE TABLE parted_2 PARTITION OF parted FOR VALUES FROM (100) TO (200);
INSERT INTO parted SELECT i, 'p' FROM generate_series(0, 99) i;
UPDATE parted SET n = n + 100 WHERE n < 50;

CREATE TABLE emptied (n int PRIMARY KEY, t text);
INSERT INTO emptied SELECT i, md5(i::text) FROM generate_series(1, 3000) i;
DELETE FROM emptied;
VACUUM emptied;
TRUNCATE emptied;
INSERT INTO emptied VALUES (1, 'again');
VACUUM FULL orders;
CLUSTER orders USING orders_pkey;
REINDEX TABLE orders;
ALTER TABLE orders ADD COLUMN extra int DEFAULT 3;
ALTER TABLE orders ALTER COLUMN extra TYPE bigint;
VACUUM FULL pg_class;
CREATE SEQUENCE numbers;
SELECT count(nextval('numbers')) FROM generate_series(1, 200);
SELECT setval('numbers', 5000);

BEGIN;
SAVEPOINT a;
INSERT INTO emptied VALUES (2, 'sub');
ROLLBACK TO a;
SAVEPOINT b;
INSERT INTO emptied VALUES (3, 'sub');
RELEASE b;
SAVEPOINT c;
CREATE TABLE undone AS SELECT generate_series(1, 100) n;
ROLLBACK TO c;
COMMIT;
DO $$
BEGIN
    FOR i IN 1..300 LOOP
        BEGIN
            UPDATE orders SET extra = i WHERE id = (SELECT min(id) + i FROM orders);
            INSERT INTO emptied VALUES (1000 + i, 'in a subtransaction');
            IF i % 10 = 0 THEN RAISE EXCEPTION 'undo'; END IF;
        EXCEPTION WHEN raise_exception THEN NULL;
        END;
    END LOOP;
END $$;
BEGIN;
DELETE FROM copied;
ROLLBACK;

BEGIN;
DELETE FROM copied WHERE n <= 40;
DROP TABLE parted_2;
PREPARE TRANSACTION 'two-phase commit';
COMMIT PREPARED 'two-phase commit';
BEGIN;
INSERT INTO copied VALUES (-1);
CREATE TABLE never (n int);
PREPARE TRANSACTION 'two-phase rollback';
ROLLBACK PREPARED 'two-phase rollback';

DROP TABLE emptied;
SELECT pg_create_restore_point('before the accident');
SELECT pg_logical_emit_message(false, 'pgproof', repeat('m', 5000));
SELECT pg_logical_emit_message(true, 'pgproof-transactional', repeat('n', 2600000));
SELECT pg_replication_origin_create('elsewhere');
SELECT pg_replication_origin_session_setup('elsewhere');
BEGIN;
SELECT pg_replication_origin_xact_setup('0/AABBCC', '2026-01-25 14:30:00+00');
INSERT INTO copied VALUES (-2);
COMMIT;
SELECT pg_replication_origin_session_reset();
SELECT pg_replication_origin_drop('elsewhere');
SELECT lo_from_bytea(0, repeat('large', 4000)::bytea);
VACUUM;
CHECKPOINT;
