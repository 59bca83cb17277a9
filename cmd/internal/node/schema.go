package node

import (
	"context"
	"time"

	"go.uber.org/zap"

	"rewindmq/cmd/internal/config"
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
	if err := checkURL(c); err != nil {
		return nil, err
	}
	found, err := mongo.Verify(ctx, mongoOptions(c, log), sample)
	if err != nil {
		return found, mongoError(c, err)
	}
	return found, nil
}
