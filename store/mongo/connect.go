package mongo

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/event"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/readconcern"
	"go.mongodb.org/mongo-driver/v2/mongo/readpref"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"
	"go.uber.org/zap"

	"rewindmq/store"
)

// majority is the write concern of everything that counts: committed by a
// majority, in its journals.
func majority() *writeconcern.WriteConcern {
	yes := true
	return &writeconcern.WriteConcern{W: "majority", Journal: &yes}
}

// connect opens the connections, checks the deployment and prepares the
// collections.
func (s *Store) connect(ctx context.Context) error {
	if err := s.dial(); err != nil {
		return err
	}
	if err := s.check(ctx); err != nil {
		return err
	}
	err := s.measureClock(ctx)
	if err != nil {
		return err
	}
	s.tellClock()
	if s.bypass, err = s.mayBypass(ctx); err != nil {
		return err
	}
	if !s.bypass {
		s.log.Info("this user has no right to bypassDocumentValidation: the server validates what this node appends, which costs it a little", zap.String("collection", s.o.Collections.Message))
	}
	return s.prepare(ctx)
}

// dial makes the clients.
func (s *Store) dial() error {
	o := options.Client().ApplyURI(s.o.URI)
	if err := o.Validate(); err != nil {
		return fmt.Errorf("mongo: connection string: %w", err)
	}
	if o.LoadBalanced != nil && *o.LoadBalanced {
		return errors.New("mongo: connection string: loadBalanced is not supported")
	}
	s.override(o)
	o.SetWriteConcern(majority()).SetReadConcern(readconcern.Majority()).SetReadPreference(readpref.Primary())
	o.SetRetryWrites(true).SetRetryReads(true)
	o.Timeout = nil
	o.SetAppName("rewindmq " + s.o.Node)
	if o.ServerSelectionTimeout == nil {
		o.SetServerSelectionTimeout(15 * time.Second) // covers an election
	}
	o.SetMinPoolSize(uint64(s.o.Lanes + sessionWriters + recordLanes))
	switch {
	case s.o.commands != nil:
		o.SetMonitor(s.o.commands)
	case s.o.Metrics != nil:
		o.SetMonitor(s.monitor())
	}
	var err error
	if s.client, err = mongo.Connect(o); err != nil {
		return fmt.Errorf("mongo: connect: %w", err)
	}
	t := options.Client().ApplyURI(s.o.URI)
	t.SetWriteConcern(majority()).SetReadConcern(readconcern.Majority()).SetReadPreference(readpref.Primary()).SetRetryReads(true)
	t.Timeout = nil
	if s.o.Metrics != nil {
		// A stream waits on purpose: how long its commands take says nothing.
		t.SetMonitor(&event.CommandMonitor{Failed: s.monitor().Failed})
	}
	t.SetAppName("rewindmq " + s.o.Node + " tail")
	if s.o.commands != nil {
		t.SetMonitor(s.o.commands)
	}
	if s.tails, err = mongo.Connect(t); err != nil {
		return fmt.Errorf("mongo: connect: %w", err)
	}
	s.db = s.client.Database(s.o.Database)
	s.c = s.collections()
	return nil
}

// override warns of options in the connection string that would weaken a promise,
// and that connect does not leave as they are.
func (s *Store) override(o *options.ClientOptions) {
	warn := func(name, why string) {
		s.log.Warn("connection string: option overridden", zap.String("option", name), zap.String("why", why))
	}
	if w := o.WriteConcern; w != nil {
		if w.W != nil && w.W != "majority" {
			warn("w", "an acknowledged message has to be on a majority of members")
		}
		if w.Journal != nil && !*w.Journal {
			warn("journal", "an acknowledged message has to be in the journals")
		}
	}
	if o.ReadConcern != nil && o.ReadConcern.Level != "" && o.ReadConcern.Level != "majority" {
		warn("readConcernLevel", "what was read must not be rolled back")
	}
	if o.ReadPreference != nil && o.ReadPreference.Mode() != readpref.PrimaryMode {
		warn("readPreference", "reads that decide go to the primary")
	}
	if o.RetryWrites != nil && !*o.RetryWrites {
		warn("retryWrites", "an attempt that was given up must not land late")
	}
	if o.Timeout != nil {
		warn("timeoutMS", "the store bounds its own attempts, and a change stream has no time-out")
	}
}

// check looks whether the deployment can keep the promises.
func (s *Store) check(ctx context.Context) error {
	var hello struct {
		SetName string `bson:"setName"`
		Msg     string `bson:"msg"`
		Wire    int    `bson:"maxWireVersion"`
	}
	admin := s.client.Database("admin")
	if err := admin.RunCommand(ctx, bson.D{{Key: "hello", Value: 1}}).Decode(&hello); err != nil {
		return fmt.Errorf("mongo: no answer from the server: %w", err)
	}
	switch {
	case hello.Msg == "isdbgrid":
		return errors.New("mongo: this is a sharded cluster; rewindmq needs a replica set")
	case hello.SetName == "":
		return errors.New("mongo: this server is a standalone; rewindmq needs a replica set (one member is enough: start mongod with --replSet and initiate it)")
	case hello.Wire < 17:
		return errors.New("mongo: the server is older than 6.0")
	}
	var conf struct {
		Config struct {
			Journal *bool `bson:"writeConcernMajorityJournalDefault"`
			Members []struct {
				Arbiter bool `bson:"arbiterOnly"`
			} `bson:"members"`
		} `bson:"config"`
	}
	if err := admin.RunCommand(ctx, bson.D{{Key: "replSetGetConfig", Value: 1}}).Decode(&conf); err != nil {
		s.log.Info("the replica set's configuration cannot be read; it is not checked", zap.Error(err))
		return nil
	}
	if j := conf.Config.Journal; j != nil && !*j {
		return errors.New("mongo: writeConcernMajorityJournalDefault is false: reads could show what is in no journal yet; set it to true")
	}
	for _, m := range conf.Config.Members {
		if m.Arbiter {
			s.log.Warn("the replica set has an arbiter: with one data-bearing member down nothing is acknowledged")
		}
	}
	return nil
}

// mayBypass tells whether this user may insert into `message` past its validator. What
// this program inserts has been checked, and made, by itself; to validate it again costs
// the server a tenth of an append. The validator is for what others insert.
func (s *Store) mayBypass(ctx context.Context) (bool, error) {
	var status struct {
		Auth struct {
			Users      []bson.Raw `bson:"authenticatedUsers"`
			Privileges []struct {
				Resource struct {
					DB         *string `bson:"db"`
					Collection string  `bson:"collection"`
					Any        bool    `bson:"anyResource"`
				} `bson:"resource"`
				Actions []string `bson:"actions"`
			} `bson:"authenticatedUserPrivileges"`
		} `bson:"authInfo"`
	}
	if err := s.db.RunCommand(ctx, fields("connectionStatus", 1, "showPrivileges", true)).Decode(&status); err != nil {
		return false, fmt.Errorf("mongo: the rights of this user: %w", err)
	}
	for _, p := range status.Auth.Privileges {
		at := func(have, want string) bool { return have == "" || have == want }
		of := p.Resource
		if (of.Any || of.DB != nil && at(*of.DB, s.o.Database) && at(of.Collection, s.o.Collections.Message)) &&
			slices.Contains(p.Actions, "bypassDocumentValidation") {
			return true, nil
		}
	}
	return len(status.Auth.Users) == 0, nil // no access control
}

// kindOf sorts an error for the metrics.
func kindOf(err error) string {
	var se mongo.ServerError
	switch {
	case errors.Is(err, store.ErrSessionLost):
		return "other"
	case mongo.IsDuplicateKeyError(err):
		return "duplicate_key"
	case mongo.IsTimeout(err):
		return "timeout"
	case mongo.IsNetworkError(err):
		return "network"
	case errors.As(err, &se):
		switch {
		case se.HasErrorCode(189), se.HasErrorCode(10107), se.HasErrorCode(11602), se.HasErrorCode(13435), se.HasErrorCode(91):
			return "not_primary"
		case se.HasErrorCode(64), se.HasErrorCode(100):
			return "write_concern"
		}
	}
	return "other"
}
