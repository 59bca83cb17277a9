package node

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"strings"

	driver "go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/x/mongo/driver/auth"
	"go.mongodb.org/mongo-driver/v2/x/mongo/driver/topology"

	"rewindmq/cmd/internal/config"
	"rewindmq/cmd/internal/exit"
	"rewindmq/store"
)

// tryURL shows what a connection string looks like.
const tryURL = "mongodb://host1,host2,host3/?replicaSet=NAME"

// tryUser is for whom the server does not know.
const tryUser = "user, password and authSource (the database that knows the user) in store.url, --store or the file that " +
	"REWINDMQ_STORE__URL_FILE names"

// OpenError gives an error of Open its exit code and what to try.
func OpenError(c *config.Config, err error) error {
	switch coded := (*exit.Error)(nil); {
	case errors.As(err, &coded):
		return err
	case errors.Is(err, store.ErrCorrupt):
		return exit.With(exit.Store, err)
	case errors.Is(err, store.ErrLocked):
		return &exit.Error{Code: exit.Failed, Err: err, Try: "--data with a directory of its own, or stop the broker that has this one"}
	case errors.Is(err, store.ErrFormat):
		return exit.With(exit.Config, err)
	case c.Store.URL == config.Embedded:
		return exit.With(exit.Failed, err)
	}
	return mongoError(c, err)
}

// checkURL refuses a connection string that the driver does not take. The driver looks up the hosts of mongodb+srv://
// here.
func checkURL(c *config.Config) error {
	err := options.Client().ApplyURI(c.Store.URL).Validate()
	if err == nil {
		return nil
	}
	if dns := (*net.DNSError)(nil); errors.As(err, &dns) {
		return &exit.Error{
			Code: exit.Connect, Err: fmt.Errorf("look up %s: %w", config.Redact(c.Store.URL), err), Try: "another host in store.url, or mongodb:// with all members",
		}
	}
	return &exit.Error{Code: exit.Config, Err: fmt.Errorf("store.url: %w", err), Try: tryURL}
}

// Codes of the server's errors that are about who asks.
const (
	codeUnauthorized         = 13
	codeAuthenticationFailed = 18
)

// mongoError tells a refused user, an unreachable server and one that is no replica set from the rest.
func mongoError(c *config.Config, err error) error {
	at := config.Redact(c.Store.URL)
	e := &exit.Error{Code: exit.Failed, Err: fmt.Errorf("%s: %w", at, err)}
	var server driver.ServerError
	var refused *auth.Error
	var selection topology.ServerSelectionError
	text := err.Error()
	switch {
	case errors.As(err, &server) && server.HasErrorCode(codeUnauthorized) && strings.Contains(text, "requires authentication"):
		e.Code, e.Try = exit.Auth, tryUser
	case errors.As(err, &server) && server.HasErrorCode(codeUnauthorized):
		e.Code, e.Try = exit.Auth, "the roles in docs/mongodb.md, section \"Users and roles\""
	case errors.As(err, &server) && server.HasErrorCode(codeAuthenticationFailed), errors.As(err, &refused),
		strings.Contains(text, "(AuthenticationFailed)"):
		// The text is all that is left where the first connection was refused and the second waited for it.
		e.Code, e.Err = exit.Auth, &said{fmt.Sprintf("%s refused the user %q: %s", at, userOf(c.Store.URL), reason(text)), err}
		e.Try = tryUser
	case errors.As(err, &selection) && ghost(selection):
		e.Code, e.Try = exit.Connect, "rs.initiate() in mongosh on one member: the replica set was not initiated"
	case errors.As(err, &selection), driver.IsNetworkError(err), driver.IsTimeout(err):
		e.Code, e.Try = exit.Connect, "mongosh with the same address: does MongoDB run at these hosts and ports, and has the replica set this name and a primary?"
	case strings.Contains(text, "this server is a standalone"):
		e.Code, e.Try = exit.Config, "start mongod with --replSet NAME, then rs.initiate() in mongosh: one member is enough"
	case strings.Contains(text, "this is a sharded cluster"), strings.HasPrefix(text, "mongo: connection string: "):
		e.Code, e.Try = exit.Config, tryURL
	}
	return e
}

// said is an error with a text of its own.
type said struct {
	text string
	err  error
}

func (s *said) Error() string { return s.text }
func (s *said) Unwrap() error { return s.err }

// reason takes what only tells the way of an error off its text.
func reason(text string) string {
	if i := strings.LastIndex(text, "(AuthenticationFailed)"); i >= 0 {
		return strings.TrimRight(strings.TrimSpace(text[i+len("(AuthenticationFailed)"):]), " },")
	}
	return strings.TrimPrefix(text, "mongo: no answer from the server: ")
}

// userOf gives the user of a connection string.
func userOf(address string) string {
	if u, err := url.Parse(address); err == nil && u.User != nil {
		return u.User.Username()
	}
	return ""
}

// ghost tells whether a server was reached that waits for its replica set to be initiated.
func ghost(e topology.ServerSelectionError) bool {
	for i := range e.Desc.Servers {
		if e.Desc.Servers[i].Kind.String() == "RSGhost" {
			return true
		}
	}
	return false
}
