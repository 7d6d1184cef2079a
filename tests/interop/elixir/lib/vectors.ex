defmodule PacketFlowPeer.Vectors do
  @moduledoc """
  Runs tests/vectors with what an ordinary JSON parser gives:
  `mix run -e "PacketFlowPeer.Vectors.main()" -- FOLDER`. Frames marked `strict`
  (a key twice, lone surrogates) an ordinary parser lets pass: a gateway refuses
  them, a reactor behind one never sees them.
  """

  def main do
    [folder | _] = System.argv()
    valid = load(folder, "valid.json")
    invalid = load(folder, "invalid.json")

    wrong =
      for vector <- valid, outcome = decode(vector["frame"]), outcome != {:ok, vector["decodes"]} do
        "#{vector["name"]}: #{inspect(outcome)}"
      end

    outcomes =
      for vector <- invalid do
        frame = if vector["hex"], do: Base.decode16!(vector["hex"], case: :lower), else: vector["frame"]
        {vector, decode(frame)}
      end

    taken =
      for {vector, outcome} <- outcomes, outcome != {:refused, vector["code"]}, not (vector["strict"] == true and match?({:ok, _}, outcome)) do
        "#{vector["name"]}: #{inspect(outcome)}"
      end

    caught = Enum.count(outcomes, &match?({_, {:refused, _}}, &1))
    failures = wrong ++ taken
    IO.puts(Jason.encode!(%{valid: length(valid), invalid: length(invalid), caught: caught, failures: failures}))
    System.halt(if failures == [], do: 0, else: 1)
  end

  defp load(folder, name) do
    {:ok, %{"frames" => frames}} = folder |> Path.join(name) |> File.read!() |> Jason.decode()
    frames
  end

  def decode(frame) do
    with {:ok, message} <- parse(frame), do: {:ok, message(message)}
  catch
    {:refused, code} -> {:refused, code}
  end

  defp parse(frame) do
    case Jason.decode(frame) do
      {:ok, message} -> {:ok, message}
      {:error, _} -> {:refused, "PF400"}
    end
  end

  defp need(condition, code \\ "PF400")
  defp need(true, _code), do: :ok
  defp need(_false, code), do: throw({:refused, code})

  defp message(message) do
    need(is_map(message) and depth(message) <= 64)
    %{"type" => type, "seq" => seq, "payload" => payload} = Map.merge(%{"type" => nil, "seq" => nil, "payload" => nil}, message)
    need(type in ["submit", "result", "error", "heartbeat"])
    need(is_integer(seq) and seq >= if(type == "submit", do: 1, else: 0) and seq < 9_007_199_254_740_992)
    need(is_map(payload))

    payload =
      case type do
        "submit" -> packet(payload)
        "result" -> result(payload)
        _ -> payload
      end

    %{"type" => type, "seq" => seq, "payload" => payload}
  end

  defp packet(payload) do
    need(is_binary(payload["version"]))
    need(String.starts_with?(payload["version"], "1."), "PF426")
    need(id?(payload["id"]))
    need(payload["group"] in ["cf", "df", "ed", "co", "mc", "rm"])
    need(is_binary(payload["element"]) and payload["element"] =~ ~r/\A[A-Za-z0-9_.-]{1,64}\z/)
    priority = payload["priority"] || 5
    need(payload["priority"] != false and whole?(priority, 1, 10))

    payload
    |> Map.take(["version", "id", "group", "element", "data"])
    |> Map.put_new("data", nil)
    |> Map.put("priority", trunc(priority))
    |> optional("timeout_ms", payload["timeout_ms"], &whole?(&1, 1, 300_000))
    |> optional("dependencies", payload["dependencies"], &(is_list(&1) and length(&1) <= 64 and Enum.all?(&1, fn d -> id?(d) end)))
    |> optional("metadata", payload["metadata"], &is_map/1)
  end

  defp result(payload) do
    need(id?(payload["packet_id"]))
    need(payload["status"] in ["success", "error"])
    fields = Map.take(payload, ["packet_id", "status", "duration_ms"])
    fields = if payload["status"] == "success", do: Map.put(fields, "data", payload["data"]), else: fields
    optional(fields, "error", payload["error"], &is_map/1)
  end

  defp optional(fields, _name, nil, _valid), do: fields

  defp optional(fields, name, value, valid) do
    need(valid.(value))
    Map.put(fields, name, value)
  end

  defp id?(value), do: is_binary(value) and byte_size(value) in 1..128
  defp whole?(value, low, high), do: is_number(value) and trunc(value) == value and value >= low and value <= high

  defp depth(map) when is_map(map), do: 1 + (map |> Map.values() |> Enum.map(&depth/1) |> Enum.max(fn -> 0 end))
  defp depth(list) when is_list(list), do: 1 + (list |> Enum.map(&depth/1) |> Enum.max(fn -> 0 end))
  defp depth(_other), do: 0
end
