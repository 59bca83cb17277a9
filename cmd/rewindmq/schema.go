package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"rewindmq/cmd/internal/config"
	"rewindmq/cmd/internal/exit"
	"rewindmq/cmd/internal/node"
)

func newSchema() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "schema",
		Short: "Look at what is stored in MongoDB",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newSchemaVerify())
	return cmd
}

func newSchemaVerify() *cobra.Command {
	var s settings
	var sample int
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Compare a MongoDB database with the schema, and print what differs",
		Long: "Compares a live MongoDB database with what a broker with this configuration expects: the format, the indexes with\n" +
			"their TTLs, the validator, and the newest documents of the collections of messages, subscriptions and delivery\n" +
			"records. It changes nothing. Each difference is a line on standard output.\n\n" +
			"Exit codes: 0 nothing differs, 7 something differs, 4 MongoDB cannot be reached, 5 it refuses the user.",
		Example: "  rewindmq schema verify --store 'mongodb://db1,db2,db3/?replicaSet=rs0'\n" +
			"  rewindmq schema verify -c rewindmq.yaml --sample 100000",
		Args: cobra.NoArgs,
		RunE: running(func(cmd *cobra.Command, _ []string) error {
			loaded, err := s.load(cmd)
			if err != nil {
				return err
			}
			c := &loaded.Config
			switch {
			case sample < 1:
				return usage("--sample is %d, want 1 or more", sample)
			case timeout <= 0:
				return usage("--timeout is %v, want more than nothing", timeout)
			case c.Store.URL == config.Embedded:
				return &exit.Error{
					Code: exit.Usage, Err: fmt.Errorf("the store is embedded: there is no schema to look at"),
					Try: "rewindmq schema verify --store 'mongodb://host1,host2,host3/?replicaSet=NAME'",
				}
			}
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			log := newLogger("warn", c.Log.Format, cmd.ErrOrStderr())
			defer func() { _ = log.Sync() }() // standard error often cannot be synced
			differs, err := node.VerifySchema(ctx, c, sample, log)
			for _, line := range differs {
				if _, err := fmt.Fprintln(cmd.OutOrStdout(), line); err != nil {
					return err
				}
			}
			switch {
			case err != nil:
				return err
			case len(differs) > 0:
				return &exit.Error{
					Code: exit.Verification, Err: fmt.Errorf("%s from the schema in database %s", count(len(differs), "difference"), c.Store.Mongo.Database),
					Try: "docs/mongodb.md, section \"Checking a database\"",
				}
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "database %s is as it has to be\n", c.Store.Mongo.Database)
			return err
		}),
	}
	s.add(cmd)
	cmd.Flags().IntVar(&sample, "sample", 1000, "how many of the newest documents of a collection are looked at")
	cmd.Flags().DurationVar(&timeout, "timeout", time.Minute, "how long it may take")
	return cmd
}
