package mongo

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/x/bsonx/bsoncore"
)

// inserter sends ordered inserts, one at a time, each a command that is made here of
// documents that are bytes already. The driver's InsertMany unmarshals each document
// again to learn its _id: that is a third of what it costs this process.
//
// Each command has a transaction number, as the driver gives retryable writes, so that
// an attempt that was given up and lands late is refused (225). The driver session is
// the inserter's alone: no other write goes through it, and it does not return to the
// pool, whose numbers are lower. The driver does not try again by itself; a caller
// looks what is stored first in any case.
//
// The driver's documentation leaves it open what RunCommand does with a command that has
// transaction fields. It passes it on; TestInserter_LateAttemptIsRefused holds all that is
// relied on: that the server judges the number, and that the session learns the time.
//
// For one goroutine.
type inserter struct {
	coll *mongo.Collection
	// bypass: the documents pass by the collection's validator.
	bypass bool
	sess   *mongo.Session
	txn    int64
	buf    []byte
}

func newInserter(client *mongo.Client, coll *mongo.Collection) (*inserter, error) {
	sess, err := client.StartSession()
	if err != nil {
		return nil, fmt.Errorf("mongo: session of inserts into %s: %w", coll.Name(), err)
	}
	return &inserter{coll: coll, sess: sess, txn: time.Now().UnixNano()}, nil
}

// insertBytes is what a command has at most, but for one with a single document. The
// server takes 16 MiB and a little.
const insertBytes = 8 << 20

// insert makes one attempt with n documents; doc appends one to a slice. What is too
// much for one command goes in several, one behind the other. The error of a document
// has its index among the n.
func (in *inserter) insert(ctx context.Context, n int, doc func(b []byte, i int) []byte) error {
	for from := 0; from < n; {
		cmd, upTo := in.command(from, n, doc)
		err := in.coll.Database().RunCommand(mongo.NewSessionContext(ctx, in.sess), cmd).Err()
		var w mongo.WriteException
		if errors.As(err, &w) {
			for i := range w.WriteErrors {
				w.WriteErrors[i].Index += from
			}
			return w
		}
		if err != nil {
			return err
		}
		from = upTo
	}
	return nil
}

// command makes a command of the documents from..upTo-1.
func (in *inserter) command(from, n int, doc func(b []byte, i int) []byte) (cmd bson.Raw, upTo int) {
	in.txn++
	at, b := bsoncore.AppendDocumentStart(in.buf[:0])
	b = bsoncore.AppendStringElement(b, "insert", in.coll.Name())
	b = bsoncore.AppendBooleanElement(b, "ordered", true)
	b = bsoncore.AppendInt64Element(b, "txnNumber", in.txn)
	if in.bypass {
		b = bsoncore.AppendBooleanElement(b, "bypassDocumentValidation", true)
	}
	w, b := bsoncore.AppendDocumentElementStart(b, "writeConcern")
	b = bsoncore.AppendStringElement(b, "w", "majority")
	b = bsoncore.AppendBooleanElement(b, "j", true)
	b, _ = bsoncore.AppendDocumentEnd(b, w)
	list, b := bsoncore.AppendArrayElementStart(b, "documents")
	for upTo = from; upTo < n; upTo++ {
		before := len(b)
		b = append(b, byte(bsoncore.TypeEmbeddedDocument))
		b = strconv.AppendInt(b, int64(upTo-from), 10)
		b = doc(append(b, 0), upTo)
		if upTo > from && len(b) > insertBytes {
			b = b[:before]
			break
		}
	}
	b, _ = bsoncore.AppendArrayEnd(b, list)
	b, _ = bsoncore.AppendDocumentEnd(b, at) // these fail only where a start is missing
	if in.buf = b; cap(b) > keepBytes {
		in.buf = nil
	}
	return bson.Raw(b), upTo
}

// keepBytes is up to how large a buffer is kept for the next command.
const keepBytes = 1 << 20

// end lets the server forget the session; without it, it does so in half an hour.
func (in *inserter) end(limit time.Duration) {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	_ = in.coll.Database().RunCommand(ctx, fields("endSessions", bson.A{in.sess.ID()})).Err()
}
