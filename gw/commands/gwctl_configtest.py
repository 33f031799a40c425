"""`gwctl configtest`: whether a server would start with what is in the directory, as Headscale has it."""

from __future__ import annotations

from gw.commands.output import Output, check_format, show


def command(output: Output = None) -> None:
    """Check config.toml and the policy; ends with 9 and the fault's place where a server could not use them.

    ExecStartPre=gwctl configtest
    """
    from gw.commands.controlclient import state_paths
    from gw.control.watching import located, read_spelled
    from gw.errors import ConfigError
    from gw.policy.faults import PolicyError
    from gw.state.config import load_config
    from gw.state.tomltext import read_bytes

    check_format(output)
    paths = state_paths()
    load_config(paths.config_file)
    rules = 0
    if paths.policy_file.exists():
        raw = read_bytes(paths.policy_file, what="policy")
        try:
            rules = len(read_spelled(raw, paths.policy_file).grants or ()) if raw.strip() else 0
        except PolicyError as error:
            raise ConfigError(
                located(paths.policy_file, error), hint=f"gwctl policy check {paths.policy_file}"
            ) from None
    found = {"config": str(paths.config_file), "policy": str(paths.policy_file), "rules": rules}
    show(found, output, lambda: f"{paths.config_file} and {paths.policy_file.name} are good: rules in force: {rules}")
