CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
CREATE TABLE jobs (
    id VARCHAR(36) NOT NULL,
    kind VARCHAR(32) NOT NULL,
    spec JSON NOT NULL,
    inputs JSON NOT NULL,
    state VARCHAR(16) NOT NULL,
    priority INTEGER NOT NULL,
    needs JSON NOT NULL,
    runs INTEGER NOT NULL,
    cancel_requested BOOLEAN NOT NULL,
    idempotency_key VARCHAR(256),
    request_digest VARCHAR(64) NOT NULL,
    not_before BIGINT NOT NULL,
    last_seq INTEGER NOT NULL,
    events_offset BIGINT NOT NULL,
    result JSON,
    error JSON,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    finished_at BIGINT,
    PRIMARY KEY (id),
    UNIQUE (idempotency_key)
);
CREATE INDEX jobs_by_state ON jobs (state, priority, id);
CREATE TABLE artifacts (
    id VARCHAR(36) NOT NULL,
    kind VARCHAR(16) NOT NULL,
    name VARCHAR(257) NOT NULL,
    digest VARCHAR(64) NOT NULL,
    path TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    files JSON NOT NULL,
    job_id VARCHAR(36),
    recipe JSON NOT NULL,
    metrics JSON NOT NULL,
    facts JSON NOT NULL,
    created_at BIGINT NOT NULL,
    removed_at BIGINT,
    PRIMARY KEY (id),
    FOREIGN KEY(job_id) REFERENCES jobs (id)
);
CREATE INDEX ix_artifacts_digest ON artifacts (digest);
CREATE TABLE events (
    job_id VARCHAR(36) NOT NULL,
    seq INTEGER NOT NULL,
    at BIGINT NOT NULL,
    type VARCHAR(16) NOT NULL,
    body JSON NOT NULL,
    PRIMARY KEY (job_id, seq),
    FOREIGN KEY(job_id) REFERENCES jobs (id)
);
CREATE TABLE job_aliases (
    alias VARCHAR(128) NOT NULL,
    job_id VARCHAR(36) NOT NULL,
    PRIMARY KEY (alias),
    FOREIGN KEY(job_id) REFERENCES jobs (id)
);
CREATE INDEX ix_job_aliases_job_id ON job_aliases (job_id);
CREATE TABLE runs (
    job_id VARCHAR(36) NOT NULL,
    number INTEGER NOT NULL,
    outcome VARCHAR(16),
    reason TEXT,
    started_at BIGINT NOT NULL,
    ended_at BIGINT,
    PRIMARY KEY (job_id, number),
    FOREIGN KEY(job_id) REFERENCES jobs (id)
);
CREATE TABLE names (
    shelf VARCHAR(16) NOT NULL,
    name VARCHAR(257) NOT NULL,
    artifact_id VARCHAR(36) NOT NULL,
    PRIMARY KEY (shelf, name),
    FOREIGN KEY(artifact_id) REFERENCES artifacts (id)
);
CREATE INDEX ix_names_artifact_id ON names (artifact_id);
CREATE TABLE parents (
    child_id VARCHAR(36) NOT NULL,
    position INTEGER NOT NULL,
    role VARCHAR(32) NOT NULL,
    kind VARCHAR(16) NOT NULL,
    parent_id VARCHAR(64) NOT NULL,
    name TEXT NOT NULL,
    digest VARCHAR(64) NOT NULL,
    PRIMARY KEY (child_id, position),
    FOREIGN KEY(child_id) REFERENCES artifacts (id)
);
CREATE INDEX ix_parents_parent_id ON parents (parent_id);
INSERT INTO alembic_version VALUES ('0001');
