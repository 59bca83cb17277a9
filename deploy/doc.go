// Package deploy holds the checks of the files with which rewindmq is deployed: docker-compose.yml, Dockerfile, the
// Prometheus files beside it, and the roles in docs/mongodb.md. It has no code of its own to use.
//
// They are checked without a Docker engine: the compose file by the loader that docker compose uses, the brokers'
// environment and command lines by running the program with them, the roles on a mongod with access control.
package deploy
