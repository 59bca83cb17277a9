package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"rewindmq/cmd/internal/config"
	"rewindmq/cmd/internal/exit"
)

func newConfig() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Check, show or begin a configuration",
		Long: "The configuration comes from flags, the environment (REWINDMQ_STORE__DATA sets store.data; with _FILE at the end\n" +
			"the value is read from that file), a YAML file and defaults, in this order of precedence.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newConfigCheck(), newConfigShow(), newConfigSchema(), newConfigInit())
	return cmd
}

func newConfigCheck() *cobra.Command {
	var s settings
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Say whether the configuration is valid, and what is wrong with it",
		Args:  cobra.NoArgs,
		RunE: running(func(cmd *cobra.Command, _ []string) error {
			if _, err := s.load(cmd); err != nil {
				return err
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "the configuration is valid")
			return err
		}),
	}
	s.add(cmd)
	return cmd
}

func newConfigShow() *cobra.Command {
	var s settings
	var origin bool
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the configuration that holds, as YAML; passwords are hidden",
		Args:  cobra.NoArgs,
		RunE: running(func(cmd *cobra.Command, _ []string) error {
			loaded, err := s.load(cmd)
			if err != nil {
				return err
			}
			return loaded.Show(cmd.OutOrStdout(), origin)
		}),
	}
	s.add(cmd)
	cmd.Flags().BoolVar(&origin, "origin", false, "say where each value comes from")
	return cmd
}

func newConfigSchema() *cobra.Command {
	return &cobra.Command{
		Use:   "schema",
		Short: "Print the JSON Schema of the configuration file, for editors",
		Args:  cobra.NoArgs,
		RunE: running(func(cmd *cobra.Command, _ []string) error {
			text, err := config.Schema()
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", text)
			return err
		}),
	}
}

func newConfigInit() *cobra.Command {
	return &cobra.Command{
		Use:   "init [FILE]",
		Short: "Write a configuration file with every setting and its default; never over a file that exists",
		Args:  cobra.MaximumNArgs(1),
		RunE: running(func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return config.Template(cmd.OutOrStdout())
			}
			var text bytes.Buffer
			if err := config.Template(&text); err != nil {
				return err
			}
			f, err := os.OpenFile(args[0], os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
			if errors.Is(err, os.ErrExist) {
				return &exit.Error{Code: exit.Failed, Err: fmt.Errorf("%s exists and is left as it is", args[0]), Try: "another file name"}
			} else if err != nil {
				return fmt.Errorf("write the configuration: %w", err)
			}
			_, err = f.Write(text.Bytes())
			if err = errors.Join(err, f.Close()); err != nil {
				return fmt.Errorf("write the configuration: %w", err)
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is written\n", args[0])
			return err
		}),
	}
}
