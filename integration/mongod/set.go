package mongod

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
)

const setName = "rewindmq"

// Options of a Set.
type Options struct {
	// Dir holds the data; each member gets a directory below it.
	Dir string
	// Members: 1 (default) or 3.
	Members int
	// CacheGB bounds WiredTiger's cache of each member; default and least 0.25.
	CacheGB float64
	// OplogMB bounds the oplog; default 256, least 1.
	OplogMB int
	// Checkpoint is how often data is written out beside the journal, whole
	// seconds; 0: the server's minute. An oplog is cut only behind a checkpoint.
	Checkpoint time.Duration
	// Election is the time-out after which members elect a new primary; default
	// 2 s.
	Election time.Duration
	// Parameters are further --setParameter values, as "name=value".
	Parameters []string
}

// Set is a running replica set. Safe for concurrent use.
type Set struct {
	opt     Options
	binary  string
	members []*Member
}

// Start starts a set and returns when it has a primary that takes writes.
func Start(ctx context.Context, o Options) (*Set, error) {
	binary, err := Find()
	if err != nil {
		return nil, err
	}
	if o.Dir == "" {
		return nil, errors.New("mongod: no directory given")
	}
	if o.Members == 0 {
		o.Members = 1
	}
	o.CacheGB = max(o.CacheGB, 0.25)
	if o.OplogMB == 0 {
		o.OplogMB = 256
	}
	if o.Election == 0 {
		o.Election = 2 * time.Second
	}
	s := &Set{opt: o, binary: binary}
	for i := range o.Members {
		port, err := freePort()
		if err != nil {
			return nil, err
		}
		s.members = append(s.members, &Member{set: s, port: port, dir: filepath.Join(o.Dir, "m"+strconv.Itoa(i+1))})
	}
	for _, m := range s.members {
		err = errors.Join(err, m.Start())
	}
	if err == nil {
		err = s.initiate(ctx)
	}
	if err != nil {
		s.Stop()
		return nil, err
	}
	return s, nil
}

func freePort() (int, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("mongod: free port: %w", err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	return port, l.Close()
}

// Members gives the members, in a fixed order.
func (s *Set) Members() []*Member { return s.members }

// URI is the connection string of the set.
func (s *Set) URI() string {
	addrs := make([]string, len(s.members))
	for i, m := range s.members {
		addrs[i] = m.Addr()
	}
	return "mongodb://" + strings.Join(addrs, ",") + "/?replicaSet=" + setName
}

// Stop kills all members. A throw-away set needs no order at its end.
func (s *Set) Stop() {
	var all sync.WaitGroup
	for _, m := range s.members {
		all.Go(m.Kill)
	}
	all.Wait()
}

// initiate makes the members a set, and waits for a primary.
func (s *Set) initiate(ctx context.Context) error {
	members := bson.A{}
	for i, m := range s.members {
		members = append(members, bson.D{{Key: "_id", Value: i}, {Key: "host", Value: m.Addr()}, {Key: "priority", Value: 1}})
	}
	config := bson.D{
		{Key: "_id", Value: setName},
		{Key: "members", Value: members},
		{Key: "settings", Value: bson.D{
			{Key: "electionTimeoutMillis", Value: s.opt.Election.Milliseconds()},
			{Key: "heartbeatIntervalMillis", Value: max(s.opt.Election.Milliseconds()/4, 100)},
		}},
	}
	for _, m := range s.members { // each listens
		if err := m.command(ctx, bson.D{{Key: "ping", Value: 1}}); err != nil {
			return fmt.Errorf("mongod: ping of %s: %w", m.Addr(), err)
		}
	}
	err := s.members[0].command(ctx, bson.D{{Key: "replSetInitiate", Value: config}})
	if err != nil {
		return fmt.Errorf("mongod: replSetInitiate: %w", err)
	}
	_, err = s.Primary(ctx)
	return err
}

// Primary waits for a primary that takes writes and gives it.
func (s *Set) Primary(ctx context.Context) (*Member, error) {
	c, err := mongo.Connect(options.Client().ApplyURI(s.URI()).SetServerSelectionTimeout(time.Minute))
	if err != nil {
		return nil, fmt.Errorf("mongod: %w", err)
	}
	defer func() { _ = c.Disconnect(context.WithoutCancel(ctx)) }()
	for {
		var hello struct {
			Writable bool   `bson:"isWritablePrimary"`
			Me       string `bson:"me"`
		}
		err := c.Database("admin").RunCommand(ctx, bson.D{{Key: "hello", Value: 1}}).Decode(&hello)
		if err == nil && hello.Writable {
			for _, m := range s.members {
				if m.Addr() == hello.Me {
					return m, nil
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("mongod: no primary: %w", errors.Join(ctx.Err(), err))
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// StepDown makes the primary give up for at least a few seconds.
func (s *Set) StepDown(ctx context.Context) error {
	p, err := s.Primary(ctx)
	if err != nil {
		return err
	}
	err = p.command(ctx, bson.D{{Key: "replSetStepDown", Value: 5}, {Key: "force", Value: true}})
	if err != nil {
		return fmt.Errorf("mongod: replSetStepDown: %w", err)
	}
	return nil
}

// command runs an admin command on this member itself.
func (m *Member) command(ctx context.Context, cmd bson.D) error {
	c, err := mongo.Connect(options.Client().ApplyURI("mongodb://" + m.Addr()).SetDirect(true).SetServerSelectionTimeout(30 * time.Second))
	if err != nil {
		return err
	}
	defer func() { _ = c.Disconnect(context.WithoutCancel(ctx)) }()
	return c.Database("admin").RunCommand(ctx, cmd).Err()
}
