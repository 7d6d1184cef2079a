defmodule PacketFlowExample.MixProject do
  use Mix.Project

  def project do
    [
      app: :packet_flow_example,
      version: "1.0.0",
      elixir: "~> 1.14",
      elixirc_paths: paths(Mix.env()),
      deps: deps(Mix.env())
    ]
  end

  def application, do: [extra_applications: [:logger, :crypto | here(Mix.env())]]

  # MIX_ENV=debian is for machines without Hex: gun and jiffy come from the path,
  # and PACKETFLOW_JASON names a folder with Jason's two functions on jiffy.
  defp paths(:debian), do: ["lib", System.fetch_env!("PACKETFLOW_JASON")]
  defp paths(_), do: ["lib"]

  defp here(:debian), do: [:gun, :jiffy]
  defp here(_), do: []

  defp deps(:debian), do: []
  defp deps(_), do: [{:gun, "~> 2.0"}, {:jason, "~> 1.4"}]
end
