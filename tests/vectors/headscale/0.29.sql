-- The tables of Headscale 0.29 with rows of our own: hashed keys, tags in a column, nodes of tags without a user.
CREATE TABLE migrations (id text, PRIMARY KEY (id));
INSERT INTO migrations VALUES ('SCHEMA_INIT'), ('202502171819'), ('202511131445-node-forced-tags-to-tags');
CREATE TABLE users (id integer PRIMARY KEY AUTOINCREMENT, name text, display_name text, email text,
    provider_identifier text, provider text, profile_pic_url text, created_at datetime, updated_at datetime, deleted_at datetime);
INSERT INTO users VALUES (1, 'ann', '', '', NULL, '', '', '2026-05-01 10:00:00+00:00', NULL, NULL);
-- the whole key: hskey-auth-0a0b0c0d0e0f-<64 times a>
CREATE TABLE pre_auth_keys (id integer PRIMARY KEY AUTOINCREMENT, key text, prefix text, hash blob, user_id integer,
    description text, reusable numeric, ephemeral numeric DEFAULT false, used numeric DEFAULT false, tags text,
    expiration datetime, revoked datetime, created_at datetime);
INSERT INTO pre_auth_keys VALUES
    (7, '', '0a0b0c0d0e0f', CAST('@BCRYPT@' AS blob), 1, 'for the lab', 1, 0, 0, '[]', '2099-01-01 00:00:00+00:00', NULL, '2026-05-01 10:00:00+00:00'),
    (8, '', '0a0b0c0d0e10', CAST('@BCRYPT@' AS blob), NULL, NULL, 0, 0, 0, '["tag:web"]', NULL, '2026-05-02 10:00:00+00:00', '2026-05-01 10:00:00+00:00');
CREATE TABLE api_keys (id integer PRIMARY KEY AUTOINCREMENT, prefix text, hash blob, user_id integer, expiration datetime,
    last_seen datetime, created_at datetime);
INSERT INTO api_keys VALUES
    (1, '0a0b0c0d0e1f', CAST('@BCRYPT@' AS blob), NULL, '2099-01-01 00:00:00+00:00', NULL, '2026-05-01 10:00:00+00:00'),
    (2, '0a0b0c0d0e20', CAST('@BCRYPT@' AS blob), NULL, NULL, NULL, '2026-05-01 10:00:00+00:00');
CREATE TABLE nodes (id integer PRIMARY KEY AUTOINCREMENT, machine_key text, node_key text, disco_key text, endpoints text,
    host_info text, ipv4 text, ipv6 text, hostname text, given_name varchar(63), user_id integer, register_method text,
    tags text, auth_key_id integer, last_seen datetime, expiry datetime, approved_routes text, created_at datetime,
    updated_at datetime, deleted_at datetime);
INSERT INTO nodes VALUES
    (3, 'mkey:3333333333333333333333333333333333333333333333333333333333333333',
     'nodekey:3333333333333333333333333333333333333333333333333333333333333303', '', '[]', '{}', '100.64.0.3', 'fd7a:115c:a1e0::3', 'web', 'web',
     NULL, 'authkey', '["tag:web"]', 8, NULL, NULL, '[]', '2026-05-01 10:00:00+00:00', NULL, NULL);
CREATE TABLE policies (id integer PRIMARY KEY AUTOINCREMENT, data text, created_at datetime, updated_at datetime, deleted_at datetime);
CREATE TABLE database_versions (id integer PRIMARY KEY, version text NOT NULL, updated_at datetime);
