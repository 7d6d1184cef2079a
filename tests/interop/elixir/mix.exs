defmodule PacketFlowPeer.MixProject do
  use Mix.Project

  def project do
    [
      app: :packet_flow_peer,
      version: "1.0.0",
      elixir: "~> 1.14",
      elixirc_paths: paths(Mix.env()),
      deps: deps(Mix.env())
    ]
  end

  def application, do: [extra_applications: [:logger, :crypto | here(Mix.env())]]

  # Where Hex is out of reach, MIX_ENV=debian takes gun from the path (ERL_LIBS)
  # and puts two functions of Jason's on top of Debian's jiffy.
  defp paths(:debian), do: ["lib", "debian"]
  defp paths(_), do: ["lib"]

  # with Hex these come from `deps`
  defp here(:debian), do: [:gun, :jiffy]
  defp here(_), do: []

  defp deps(:debian), do: []
  defp deps(_), do: [{:gun, "~> 2.0"}, {:jason, "~> 1.4"}]
end
