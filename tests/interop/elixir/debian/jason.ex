defmodule Jason do
  @moduledoc "The two functions of Jason that the peer calls, on Debian's jiffy: keys in order, nil as null."

  def encode!(term), do: term |> ordered() |> :jiffy.encode([:use_nil]) |> IO.iodata_to_binary()

  def decode(text) do
    {:ok, :jiffy.decode(text, [:return_maps, :use_nil])}
  catch
    _kind, reason -> {:error, reason}
  end

  defp ordered(map) when is_map(map) do
    {map |> Enum.sort_by(fn {key, _} -> to_string(key) end) |> Enum.map(fn {key, value} -> {key, ordered(value)} end)}
  end

  defp ordered(list) when is_list(list), do: Enum.map(list, &ordered/1)
  defp ordered(other), do: other
end
