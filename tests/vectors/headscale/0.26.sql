-- The tables of Headscale 0.26 with rows of our own: keys in plain text, tags forced or by key.
CREATE TABLE migrations (id text, PRIMARY KEY (id));
INSERT INTO migrations VALUES ('202502171819'), ('202505091439'), ('202505141324');
CREATE TABLE users (id integer PRIMARY KEY AUTOINCREMENT, created_at datetime, updated_at datetime, deleted_at datetime,
    name text, display_name text, email text, provider_identifier text, provider text, profile_pic_url text);
INSERT INTO users VALUES
    (1, '2025-05-01 10:00:00.123456789+00:00', NULL, NULL, 'ann', 'Ann', '', NULL, '', ''),
    (2, '2025-05-01 12:00:00+02:00', NULL, NULL, 'bob', '', 'bob@example.org', 'https://id.test/42', 'oidc', 'https://id.test/b.png'),
    (3, '2025-05-01 10:00:00 +0000 UTC', NULL, NULL, 'Ann', '', '', 'https://id.test/43', 'oidc', ''),
    (4, '2025-05-01 10:00:00+00:00', NULL, '2025-05-02 10:00:00+00:00', 'gone', '', '', NULL, '', ''),
    (5, '2025-05-01 10:00:00+00:00', NULL, NULL, '7 dwarfs', '', '', NULL, '', '');
CREATE TABLE pre_auth_keys (id integer PRIMARY KEY AUTOINCREMENT, key text, user_id integer, reusable numeric,
    ephemeral numeric DEFAULT false, used numeric DEFAULT false, tags text, created_at datetime, expiration datetime);
INSERT INTO pre_auth_keys VALUES
    (1, '0123456789abcdef0123456789abcdef0123456789abcdef', 1, 1, 0, 1, '[]', '2025-05-01 10:00:00+00:00', '2099-01-01 00:00:00+00:00'),
    (2, 'fedcba9876543210fedcba9876543210fedcba9876543210', 2, 0, 1, 1, '["tag:web"]', '2025-05-01 10:00:00+00:00', '2025-05-02 10:00:00+00:00'),
    (3, 'not a key', 1, 0, 0, 0, '[]', '2025-05-01 10:00:00+00:00', NULL);
CREATE TABLE api_keys (id integer PRIMARY KEY AUTOINCREMENT, prefix text, hash blob, created_at datetime,
    expiration datetime, last_seen datetime);
INSERT INTO api_keys VALUES (1, 'Ab-_c1z', '$2a$10$K7Fh3fe9mgoASLdC0r9/fen8OhY62mztQ2LJUvUZwSBn0cLff3cuS',
    '2025-05-01 10:00:00+00:00', '2099-01-01 00:00:00+00:00', NULL);
CREATE TABLE nodes (id integer PRIMARY KEY AUTOINCREMENT, machine_key text, node_key text, disco_key text,
    endpoints text, host_info text, ipv4 text, ipv6 text, hostname text, given_name varchar(63), user_id integer,
    register_method text, forced_tags text, auth_key_id integer, expiry datetime, last_seen datetime,
    approved_routes text, created_at datetime, updated_at datetime, deleted_at datetime);
INSERT INTO nodes VALUES
    (1, 'mkey:1111111111111111111111111111111111111111111111111111111111111111',
     'nodekey:1111111111111111111111111111111111111111111111111111111111111101', 'discokey:00', '[]',
     '{"Hostname":"Nas","RoutableIPs":["10.0.0.0/8","0.0.0.0/0","::/0"]}', '100.64.0.1', 'fd7a:115c:a1e0::1', 'Nas', 'nas', 1, 'authkey', '[]', 1,
     '0001-01-01 00:00:00+00:00', '2025-06-01 10:00:00+00:00', '["10.0.0.0/8","0.0.0.0/0"]', '2025-05-01 10:00:00+00:00', NULL, NULL),
    (2, 'mkey:2222222222222222222222222222222222222222222222222222222222222222',
     'nodekey:2222222222222222222222222222222222222222222222222222222222222202', '', '[]', '{}', '100.64.0.2', '', 'web', 'web', 2, 'authkey',
     '["tag:forced"]', 2, '2031-01-01 00:00:00+00:00', NULL, NULL, '2025-05-01 10:00:00+00:00', NULL, NULL),
    (3, 'mkey:3333333333333333333333333333333333333333333333333333333333333333',
     'nodekey:3333333333333333333333333333333333333333333333333333333333333303', '', NULL, NULL, '100.64.0.3', NULL, 'Ann''s Mac', 'ann''s mac', 1, 'oidc',
     NULL, NULL, '2031-01-01 00:00:00+00:00', NULL, '[]', '2025-05-01 10:00:00+00:00', NULL, NULL),
    (4, 'mkey:4444444444444444444444444444444444444444444444444444444444444444',
     'nodekey:1111111111111111111111111111111111111111111111111111111111111101', '', NULL, NULL, '100.64.0.4', NULL, 'twin', 'twin', 1, 'cli',
     NULL, NULL, NULL, NULL, '[]', '2025-05-01 10:00:00+00:00', NULL, NULL),
    (5, 'nonsense', 'nodekey:00', '', NULL, NULL, '100.64.0.5', NULL, 'x', 'x', 1, 'cli', NULL, NULL, NULL, NULL, '[]', NULL, NULL, NULL),
    (9, 'mkey:9999999999999999999999999999999999999999999999999999999999999999',
     'nodekey:9999999999999999999999999999999999999999999999999999999999999909', '', NULL, NULL, '100.64.0.9', NULL, 'nas', 'NAS', 1, 'cli',
     '["bad tag"]', NULL, NULL, NULL, '["nonsense"]', '2025-05-01 10:00:00+00:00', NULL, NULL);
CREATE TABLE policies (id integer PRIMARY KEY AUTOINCREMENT, created_at datetime, updated_at datetime,
    deleted_at datetime, data text);
INSERT INTO policies VALUES (1, NULL, NULL, NULL, '{}'), (2, NULL, NULL, NULL, '{"acls": [{"action": "accept", "src": ["ann@"], "dst": ["*:*"]}]}');
