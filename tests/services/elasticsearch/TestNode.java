package quikflow.tests;

import java.nio.file.Path;
import java.util.Map;
import java.util.Set;
import org.elasticsearch.common.logging.LogConfigurator;
import org.elasticsearch.common.settings.Settings;
import org.elasticsearch.env.Environment;
import org.elasticsearch.node.InternalSettingsPreparer;
import org.elasticsearch.node.Node;
import org.elasticsearch.plugins.PluginsLoader;

/**
 * One node until the process is asked to end. Arguments: the folder of configuration and data, and the
 * folder of modules. (The server's own start wants the folders of its distribution, which no package has.)
 */
public final class TestNode {
    private TestNode() {}

    public static void main(String[] arguments) {
        Node node = null;
        try {
            Path home = Path.of(arguments[0]);
            Environment environment = InternalSettingsPreparer.prepareEnvironment(
                Settings.builder().put("path.home", home.toString()).build(), Map.of(), home.resolve("config"), () -> "test");
            LogConfigurator.registerErrorListener();
            LogConfigurator.setNodeName("test");
            LogConfigurator.configure(environment, true);
            var modules = PluginsLoader.loadModulesBundles(Path.of(arguments[1]));
            node = new Node(environment, PluginsLoader.createPluginsLoader(modules, Set.of(), Map.of(), false));
            node.start();
        } catch (Throwable failure) {
            failure.printStackTrace();
            System.exit(1);
        }
        Node running = node;
        Object end = new Object();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> {
            try {
                running.close();
            } catch (Exception failure) {
                failure.printStackTrace();
            }
        }));
        // Its threads are daemons: something has to stay.
        synchronized (end) {
            while (true) {
                try {
                    end.wait();
                } catch (InterruptedException ignored) {
                    return;
                }
            }
        }
    }
}
