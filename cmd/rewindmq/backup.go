package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"rewindmq/cmd/internal/config"
	"rewindmq/cmd/internal/control"
	"rewindmq/cmd/internal/exit"
)

func newBackup() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "backup DIR",
		Short: "Copy the log of the running broker to a new directory",
		Long: "Asks the broker that has the data directory open to copy its log. DIR must not exist. A broker starts from the\n" +
			"copy with: rewindmq serve --data DIR\n\n" +
			"This is for the embedded log. MongoDB is backed up by its own tools.",
		Args: cobra.ExactArgs(1),
		RunE: running(func(cmd *cobra.Command, args []string) error {
			loaded, err := s.load(cmd)
			if err != nil {
				return err
			}
			if url := loaded.Config.Store.URL; url != config.Embedded {
				return &exit.Error{
					Code: exit.Usage, Err: fmt.Errorf("the store is %s: MongoDB is backed up by its own tools", config.Redact(url)),
					Try: "mongodump --oplog, or a snapshot of a member: docs/mongodb.md, section \"Backup\"",
				}
			}
			err = control.Backup(cmd.Context(), loaded.Config.Store.Data, args[0])
			switch {
			case errors.Is(err, control.ErrNoBroker):
				return &exit.Error{Code: exit.Connect, Err: err, Try: "rewindmq serve --data " + loaded.Config.Store.Data}
			case err != nil:
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "the log is copied to %s\n", args[0])
			return err
		}),
	}
	s.add(cmd)
	return cmd
}
