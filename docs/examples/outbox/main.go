// Command outbox is an example of a transactional outbox on rewindmq's message collection: an order and the message
// that announces it are inserted in one transaction, so that there is never one without the other. Inserting is
// publishing: the brokers deliver the document once the transaction has committed, and also to sessions that are away.
//
//	outbox 'mongodb://db1,db2,db3/?replicaSet=rs0' 4711
//
// It starts no goroutine of its own.
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"go.mongodb.org/mongo-driver/v2/bson"
	"go.mongodb.org/mongo-driver/v2/mongo"
	"go.mongodb.org/mongo-driver/v2/mongo/options"
	"go.mongodb.org/mongo-driver/v2/mongo/writeconcern"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: outbox CONNECTION-STRING ORDER")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := placeOrder(ctx, os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "outbox:", err)
		os.Exit(1)
	}
}

func placeOrder(ctx context.Context, uri, order string) error {
	client, err := mongo.Connect(options.Client().ApplyURI(uri).SetWriteConcern(writeconcern.Majority()))
	if err != nil {
		return fmt.Errorf("connect: %w", err)
	}
	defer func() { _ = client.Disconnect(ctx) }()
	session, err := client.StartSession()
	if err != nil {
		return fmt.Errorf("start a session: %w", err)
	}
	defer session.EndSession(ctx)

	orders := client.Database("shop").Collection("order")
	messages := client.Database("mqtt").Collection("message")
	// The driver may run the function again, so it does nothing but these two inserts.
	_, err = session.WithTransaction(ctx, func(ctx context.Context) (any, error) {
		if _, err := orders.InsertOne(ctx, bson.D{{Key: "_id", Value: order}, {Key: "state", Value: "placed"}}); err != nil {
			return nil, err
		}
		// topic and data are all that has to be there. The broker sets the rest when it adopts the document.
		return messages.InsertOne(ctx, bson.D{
			{Key: "_id", Value: bson.NewObjectID()},
			{Key: "topic", Value: "shop/order/" + order},
			{Key: "data", Value: `{"order":"` + order + `","state":"placed"}`},
			{Key: "qos", Value: 1},
		})
	})
	if err != nil {
		return fmt.Errorf("order %s: %w", order, err)
	}
	return nil
}
