package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	driver "go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/x/mongo/driver/auth"
	"go.mongodb.org/mongo-driver/v2/x/mongo/driver/topology"
	"go.uber.org/zap"

	"rewindmq/cmd/internal/config"
	"rewindmq/cmd/internal/exit"
	"rewindmq/store/mongo"
)

// mongoOptions are the store's options as the configuration has them, without the node's name and metrics.
func mongoOptions(c *config.Config, log *zap.Logger) mongo.Options {
	m := &c.Store.Mongo
	return mongo.Options{
		URI: c.Store.URL, Database: m.Database, Lanes: m.Lanes, Hold: time.Duration(c.Append.Hold),
		Collections:    mongo.Names{Message: m.Message, Subscription: m.Subscription, PublishedMessage: m.PublishedMessage},
		RetainMessages: time.Duration(c.Store.Retention.Messages), RetainRecords: time.Duration(c.Store.Retention.Records),
		BinaryPayloads: m.Payload == "binary", SweepRecords: c.Store.Window(), NoStreams: !m.Streams, Log: log.Named("store"),
	}
}

// VerifySchema checks the MongoDB database that the configuration names against what a broker with this configuration
// would make of it, and changes nothing. It returns what differs, a line each, and looks at up to sample documents of a
// collection. An error carries its exit code.
func VerifySchema(ctx context.Context, c *config.Config, sample int, log *zap.Logger) ([]string, error) {
	// The driver looks up the hosts of mongodb+srv:// here.
	if err := options.Client().ApplyURI(c.Store.URL).Validate(); err != nil {
		if dns := (*net.DNSError)(nil); errors.As(err, &dns) {
			return nil, &exit.Error{Code: exit.Connect, Err: fmt.Errorf("look up %s: %w", config.Redact(c.Store.URL), err)}
		}
		return nil, &exit.Error{Code: exit.Config, Err: fmt.Errorf("store.url: %w", err), Try: "mongodb://host1,host2,host3/?replicaSet=NAME"}
	}
	found, err := mongo.Verify(ctx, mongoOptions(c, log), sample)
	if err != nil {
		return found, exit.With(mongoCode(err), fmt.Errorf("%s: %w", config.Redact(c.Store.URL), err))
	}
	return found, nil
}

// Codes of the server's errors that are about who asks.
const (
	codeUnauthorized         = 13
	codeAuthenticationFailed = 18
)

// mongoCode tells a refused user and an unreachable server from the rest.
func mongoCode(err error) exit.Code {
	var server driver.ServerError
	var refused *auth.Error
	var unreachable topology.ServerSelectionError
	switch {
	case errors.As(err, &server) && (server.HasErrorCode(codeUnauthorized) || server.HasErrorCode(codeAuthenticationFailed)),
		errors.As(err, &refused), strings.Contains(err.Error(), "(AuthenticationFailed)"):
		// The text is all that is left where the first connection was refused and the second waited for it.
		return exit.Auth
	case errors.As(err, &unreachable), driver.IsNetworkError(err), driver.IsTimeout(err):
		return exit.Connect
	}
	return exit.Failed
}
